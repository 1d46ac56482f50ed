//! The reading of `[[rollout]]`: which requests and users move, and to which backend.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::{Anonymous, Failover, PerSide, Percent, RolloutSettings, UserList};

use super::backend::{as_name, is_name};
use super::{Fault, Lower};
use crate::document::not_a_text;
use crate::error::Source;
use crate::schema::{AnonymousText, At, FailoverText, Number, RolloutTable, default};
use crate::shape::rollout_context;
use crate::text::{clip, quote};
use crate::world::World;

/// The largest list of users in bytes: about a million keys of 16 bytes.
pub const MAX_LIST: usize = 16 << 20;
/// The maximum drain time. A stream that may stay on a bad backend for longer than this was not
/// meant to be closed.
const MAX_DRAIN: Duration = Duration::from_secs(86_400);

/// A rollout as far as it could be read, and its position.
pub(super) struct Draft {
    pub(super) id: Option<String>,
    pub(super) source: Arc<Source>,
    /// The position of its `[[rollout]]` line.
    pub(super) header: Range<usize>,
    /// The position of its `id`, or otherwise of the header.
    pub(super) id_span: Range<usize>,
    /// The position of its `salt`, or otherwise of the header.
    pub(super) salt_span: Range<usize>,
    /// The position of the `older_than` of its guard. `None` if it is not written.
    pub(super) hang_span: Option<Range<usize>>,
    pub(super) settings: Option<RolloutSettings>,
}

impl Lower<'_> {
    pub(super) fn rollout(
        &mut self,
        (index, at): (usize, At<RolloutTable>),
        backends: &[String],
        world: &mut World<'_>,
    ) -> Draft {
        let At {
            value: table,
            span: header,
        } = at;
        let RolloutTable {
            id,
            matches,
            legacy,
            new,
            percent,
            salt,
            key,
            anonymous,
            always_new,
            always_legacy,
            generation,
            holdback,
            failover,
            fallback_on_404,
            drain_on_rollback,
            guard,
            plan,
            check,
        } = table;
        self.context = rollout_context(id.as_ref().map(|id| id.value.as_str()), index);
        self.refuse_what_is_to_come(plan.map(|at| at.span), check.map(|at| at.span));

        let id_span = id.as_ref().map_or(header.clone(), |id| id.span.clone());
        let salt_span = salt
            .as_ref()
            .map_or(header.clone(), |salt| salt.span.clone());
        let name = id
            .as_ref()
            .and_then(|id| self.settle(&id.span, "id", rollout_id(&id.value)));
        let salt = match &salt {
            Some(salt) => self.settle(&salt.span, "salt", rollout_salt(&salt.value)),
            None => name.clone(),
        };
        let matches = self.matches(matches);
        let keys = key.as_ref().and_then(|key| self.keys(key));
        let percent = percent.as_ref().and_then(|at| self.percent(at, "percent"));
        let holdback = match &holdback {
            Some(at) => self.holdback(at, percent),
            None => Some(Percent::ZERO),
        };
        let sides = self.sides(legacy.as_ref(), new.as_ref(), &header, backends);
        let on_new = self.users(always_new.as_ref(), "always_new", world);
        let on_legacy = self.users(always_legacy.as_ref(), "always_legacy", world);
        if let (Some(on_new), Some(on_legacy), Some(at)) = (&on_new, &on_legacy, &always_new) {
            self.warn_of_users_in_both(on_new, on_legacy, &at.span);
        }
        let hang_span = guard
            .as_ref()
            .and_then(|at| at.value.hang.as_ref()?.value.as_set()?.older_than.as_ref())
            .map(|at| at.span.clone());
        let in_force = percent.and_then(|percent| Some(percent.min(beside(holdback?)?)));
        let guard = self.guard(guard, &header, in_force);
        let anonymous = match anonymous.unwrap_or(AnonymousText::Legacy) {
            AnonymousText::Legacy => Anonymous::Legacy,
            AnonymousText::Cookie => Anonymous::Cookie,
            AnonymousText::Random => Anonymous::Random,
        };
        let failover = match failover.unwrap_or(FailoverText::Safe) {
            FailoverText::Off => Failover::Off,
            FailoverText::Connect => Failover::Connect,
            FailoverText::Safe => Failover::Safe,
        };
        let fallback_on_404 = self.prefixes(fallback_on_404.as_ref(), "fallback_on_404");
        let drain_on_rollback = self.duration(
            drain_on_rollback.as_ref(),
            "drain_on_rollback",
            default::DRAIN_ON_ROLLBACK,
            Duration::ZERO,
            MAX_DRAIN,
        );
        let settings = || {
            Some(RolloutSettings {
                id: name?.into(),
                matches: matches?,
                salt: salt?.into(),
                keys: keys?,
                anonymous,
                always_new: UserList::new(on_new?),
                always_legacy: UserList::new(on_legacy?),
                backends: sides?,
                percent: percent?,
                generation: generation.unwrap_or(default::GENERATION),
                holdback: holdback?,
                failover,
                fallback_on_404: fallback_on_404?,
                drain_on_rollback,
                guard,
            })
        };
        let draft = Draft {
            id: id.map(|id| id.value),
            source: Arc::clone(self.source),
            header,
            id_span,
            salt_span,
            hang_span,
            settings: settings(),
        };
        self.context.clear();
        draft
    }

    fn refuse_what_is_to_come(&mut self, plan: Option<Range<usize>>, check: Option<Range<usize>>) {
        if let Some(span) = plan {
            self.refuse(
                span,
                "plan",
                "remove it, write percent = N, and raise that by hand or with `cutover set`",
            );
        }
        if let Some(span) = check {
            self.refuse(span, "check", "remove it");
        }
    }

    /// Reads the share of users kept on legacy. Warns where it takes effect below 100 %, although
    /// it is meant for 100 %.
    fn holdback(&mut self, at: &At<Number>, percent: Option<Percent>) -> Option<Percent> {
        let holdback = self.percent(at, "holdback")?;
        let most = beside(holdback)?;
        let problem = match percent {
            _ if most == Percent::ZERO => self.warning(
                &at.span,
                "holdback",
                "everybody is held back, so nobody is ever on new",
            ),
            Some(percent) if percent > most && percent < Percent::FULL => self.warning(
                &at.span,
                "holdback",
                format!(
                    "percent = {percent} and holdback = {holdback} are more than 100 together: \
                     {most} % of users are on new"
                ),
            ),
            _ => return Some(holdback),
        };
        self.report.push(
            problem
                .label("held back")
                .hint("a control group of 1 is enough"),
        );
        Some(holdback)
    }

    fn percent(&mut self, at: &At<Number>, key: &str) -> Option<Percent> {
        let digits = self.digits(at);
        let result = Percent::parse(&digits).map_err(|error| {
            let rounded = digits
                .parse::<f64>()
                .ok()
                .filter(|number| (0.0..=100.0).contains(number))
                .map(|number| (number * 1000.0).round() / 1000.0);
            Fault {
                what: format!(
                    "expected a number from 0 to 100 with at most three decimals, found {digits}: \
                     {error}"
                ),
                hint: rounded.map(|number| format!("write {key} = {number}")),
            }
        });
        self.settle(&at.span, key, result)
    }

    fn sides(
        &mut self,
        legacy: Option<&At<String>>,
        new: Option<&At<String>>,
        header: &Range<usize>,
        backends: &[String],
    ) -> Option<PerSide<Arc<str>>> {
        let sides = PerSide {
            legacy: self.backend_name(legacy, header, "legacy", default::LEGACY, backends),
            new: self.backend_name(new, header, "new", default::NEW, backends),
        };
        let sides = PerSide {
            legacy: sides.legacy?,
            new: sides.new?,
        };
        if sides.legacy == sides.new {
            let span = new.or(legacy).map_or(header, |at| &at.span);
            let what = format!("legacy and new are both the backend {:?}", &*sides.new);
            self.settle::<()>(
                span,
                "new",
                Err(Fault::new(what, "name the backend that users are moved to")),
            );
        }
        Some(sides)
    }

    /// Returns the users of a list, including those in its files. `None` if an entry cannot be
    /// used.
    fn users(
        &mut self,
        entries: Option<&At<Vec<At<String>>>>,
        key: &str,
        world: &mut World<'_>,
    ) -> Option<Vec<String>> {
        let mut users = Some(Vec::new());
        for (index, entry) in entries.into_iter().flat_map(|at| &at.value).enumerate() {
            let key = format!("{key}[{}]", index + 1);
            let found = match entry.value.strip_prefix("file:") {
                Some(path) => self.user_file(path.trim(), &entry.span, &key, world),
                None if entry.value.is_empty() => self.settle(
                    &entry.span,
                    &key,
                    Err(Fault::new(
                        "expected a user's key, found an empty string",
                        "remove it; users without a key are what anonymous is for",
                    )),
                ),
                None => Some(vec![entry.value.clone()]),
            };
            match (&mut users, found) {
                (Some(users), Some(found)) => users.extend(found),
                (users, _) => *users = None,
            }
        }
        users
    }

    fn user_file(
        &mut self,
        path: &str,
        span: &Range<usize>,
        key: &str,
        world: &mut World<'_>,
    ) -> Option<Vec<String>> {
        let read = if path.is_empty() {
            Err("the path is missing".to_owned())
        } else {
            world.read(path)
        };
        let source = match read {
            Ok(source) => source,
            Err(reason) => {
                let what = format!("cannot read the list {}: {reason}", quote(&clip(path)));
                return self.settle(
                    span,
                    key,
                    Err(Fault::new(
                        what,
                        "paths are relative to the folder of the main file, in included files too",
                    )),
                );
            }
        };
        if let Some(problem) = not_a_text(&source, MAX_LIST) {
            self.report.push(problem.hint(format!(
                "named at {} as a list of users",
                self.source.place(span.start)
            )));
            return None;
        }
        let lines = source
            .text
            .trim_start_matches('\u{feff}')
            .lines()
            .map(str::trim);
        let users: Vec<String> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        if users.is_empty() {
            let problem = self
                .warning(
                    span,
                    key,
                    format!("the list {} names nobody", quote(&clip(path))),
                )
                .label("an empty list");
            self.report
                .push(problem.hint("one key per line; lines that begin with # are comments"));
        }
        Some(users)
    }

    fn warn_of_users_in_both(
        &mut self,
        on_new: &[String],
        on_legacy: &[String],
        span: &Range<usize>,
    ) {
        let legacy = UserList::new(on_legacy);
        let mut both: Vec<&str> = on_new
            .iter()
            .map(String::as_str)
            .filter(|user| legacy.contains(user.as_bytes()))
            .collect();
        both.sort_unstable();
        both.dedup();
        let named = match both.as_slice() {
            [] => return,
            [only] => format!("{} is", quote(only)),
            [first, second] => format!("{} and {} are", quote(first), quote(second)),
            [first, rest @ ..] => format!("{} and {} others are", quote(first), rest.len()),
        };
        let problem = self
            .warning(
                span,
                "always_new",
                format!("{named} in always_legacy too, which wins"),
            )
            .label("overruled");
        self.report
            .push(problem.hint("name a user in one of the two lists"));
    }
}

/// Returns the largest share on new that a control group allows.
fn beside(holdback: Percent) -> Option<Percent> {
    Percent::from_thousandths(
        Percent::FULL
            .thousandths()
            .checked_sub(holdback.thousandths())?,
    )
}

fn rollout_id(text: &str) -> Result<String, Fault> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    let what = format!(
        "expected at most 64 lower-case letters, digits, . _ and -, beginning with a letter or \
         digit, found {}",
        quote(text)
    );
    Err(Fault {
        what,
        hint: as_name(text).map(|name| format!("write id = {name:?}")),
    })
}

fn rollout_salt(text: &str) -> Result<String, Fault> {
    match text {
        "" => Err(Fault::new(
            "expected a text, found an empty string",
            "remove the line: the salt is the id then",
        )),
        text if text.contains(':') => {
            let what = format!("a salt cannot hold a colon, found {}", quote(text));
            Err(Fault::new(
                what,
                format!("write salt = {:?}", text.replace(':', "-")),
            ))
        }
        text => Ok(text.to_owned()),
    }
}
