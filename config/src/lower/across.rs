//! The checks across rollouts: the same id, the same users, or requests that an earlier rollout
//! already matches. Also the effect of a backend on the guard of a rollout.

use std::time::Duration;

use cutover_core::{Match, Mode, RolloutSettings, Rule};

use super::rollout::Draft;
use crate::duration::write_duration;
use crate::error::{Problem, Report};
use crate::settings::Backend;
use crate::shape::rollout_context;
use crate::text::quote;

/// Compares all rollouts in the order in which they are tried, and each with the backend that it
/// moves users to.
pub(super) fn check(drafts: &[Draft], backends: &[Backend], report: &mut Report) {
    for (index, later) in drafts.iter().enumerate() {
        let earlier = &drafts[..index];
        if let Some(id) = &later.id
            && let Some(first) = earlier.iter().find(|first| first.id.as_ref() == Some(id))
        {
            let problem = later.source.error(
                later.id_span.clone(),
                format!("rollout {}: the id is taken by another rollout", quote(id)),
            );
            report.push(problem.label("a second time").hint(format!(
                "the first one is at {}: give each its own id",
                first.source.place(first.id_span.start)
            )));
            continue;
        }
        let Some(settings) = &later.settings else {
            continue;
        };
        if let Some(problem) = never_hangs(later, settings, backends) {
            report.push(problem);
        }
        let read = || {
            earlier
                .iter()
                .filter_map(|first| first.settings.as_ref().map(|settings| (first, settings)))
        };
        if let Some((_, first)) = read().find(|(_, first)| first.salt == settings.salt) {
            let message = format!(
                "rollouts {:?} and {:?} share the salt {}: they move the same users",
                &*first.id,
                &*settings.id,
                quote(&settings.salt)
            );
            let problem = later
                .source
                .warning(later.salt_span.clone(), message)
                .label("the same salt");
            report.push(problem.hint("fine if that is meant; otherwise give each its own salt"));
        }
        if let Some((at, first)) =
            read().find(|(_, first)| takes_all(&first.matches, &settings.matches))
        {
            report.push(shadowed(
                later,
                settings,
                first,
                &at.source.place(at.header.start),
            ));
        }
    }
}

/// Reports a written hang rule that a response timeout always preempts. The default hang rule is
/// not a mistake: the failures count in that case.
fn never_hangs(draft: &Draft, settings: &RolloutSettings, backends: &[Backend]) -> Option<Problem> {
    let span = draft.hang_span.clone()?;
    let older_than = settings.guard.rules.iter().find_map(|rule| {
        if let Rule::Hang(us) = rule {
            Some(Duration::from_micros(*us))
        } else {
            None
        }
    })?;
    let backend = backends
        .iter()
        .find(|backend| backend.name == settings.backends.new)?;
    if settings.guard.mode == Mode::Off || older_than < backend.response_timeout {
        return None;
    }
    let (older_than, timeout) = (
        write_duration(older_than),
        write_duration(backend.response_timeout),
    );
    let context = rollout_context(Some(&settings.id), 0);
    let message = format!(
        "{context}guard.hang.older_than: {older_than} is not below response_timeout of backend \
         {:?} ({timeout}): the timeout comes first, so this rule never sees a hang",
        &*backend.name
    );
    let problem = draft.source.warning(span, message).label("never reached");
    let less = if backend.response_timeout > Duration::from_secs(1) {
        format!("write less than {timeout}, or remove it")
    } else {
        "remove it".to_owned()
    };
    Some(problem.hint(format!("{less}: requests that time out count as failures")))
}

fn shadowed(
    later: &Draft,
    settings: &RolloutSettings,
    first: &RolloutSettings,
    place: &str,
) -> Problem {
    let message = format!(
        "rollout {:?} never gets a request: rollout {:?} at {place} comes first and takes all \
         that it matches",
        &*settings.id, &*first.id
    );
    let problem = later
        .source
        .warning(later.header.clone(), message)
        .label("never reached");
    problem.hint(format!(
        "put it before {:?}, or narrow the match of that one",
        &*first.id
    ))
}

/// Whether `first` accepts every request that `later` accepts.
fn takes_all(first: &Match, later: &Match) -> bool {
    let host = match (first.host.as_deref(), later.host.as_deref()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(first), Some(later)) => {
            first == later
                || first
                    .strip_prefix('*')
                    .is_some_and(|suffix| later.len() > suffix.len() && later.ends_with(suffix))
        }
    };
    let path = match (first.path.as_deref(), later.path.as_deref()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(first), Some(later)) => later
            .strip_prefix(first)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    let methods = first.methods.is_empty()
        || (!later.methods.is_empty()
            && later
                .methods
                .iter()
                .all(|method| first.methods.contains(method)));
    host && path && methods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: Option<&str>, path: Option<&str>, methods: &[&str]) -> Match {
        Match {
            host: host.map(Into::into),
            path: path.map(Into::into),
            methods: methods.iter().map(|&method| method.into()).collect(),
        }
    }

    #[test]
    fn a_rollout_is_unreachable_only_if_all_its_requests_are_taken() {
        let everything = of(None, None, &[]);
        let shop = of(Some("shop.example"), Some("/shop"), &["GET"]);
        assert!(takes_all(&everything, &shop));
        assert!(!takes_all(&shop, &everything));
        assert!(takes_all(&shop, &shop));
        assert!(takes_all(
            &of(None, Some("/shop"), &[]),
            &of(None, Some("/shop/cart"), &[])
        ));
        assert!(!takes_all(
            &of(None, Some("/shop"), &[]),
            &of(None, Some("/shopping"), &[])
        ));
        assert!(takes_all(
            &of(Some("*.example"), None, &[]),
            &of(Some("shop.example"), None, &[])
        ));
        assert!(takes_all(
            &of(Some("*.example"), None, &[]),
            &of(Some("*.shop.example"), None, &[])
        ));
        assert!(!takes_all(
            &of(Some("*.example"), None, &[]),
            &of(Some("example"), None, &[])
        ));
        assert!(!takes_all(
            &of(Some("*.shop.example"), None, &[]),
            &of(Some("*.example"), None, &[])
        ));
        assert!(!takes_all(&of(None, None, &["GET"]), &of(None, None, &[])));
        assert!(takes_all(
            &of(None, None, &["GET", "PUT"]),
            &of(None, None, &["GET"])
        ));
        assert!(!takes_all(
            &of(None, None, &["GET"]),
            &of(None, None, &["GET", "PUT"])
        ));
    }
}
