//! The lookup of the rollout that applies to a request, without checking each of them.
//!
//! The first rollout of the file that matches applies, and a platform team may have a thousand. The
//! matches are therefore sorted once, when the file is loaded: by host, then by path prefix. A
//! request looks up its own host (and the wildcards that may match it, label by label) and the
//! prefixes of its own path, segment by segment. The number of lookups is the number of its labels
//! and segments, however many rollouts there are. A few rollouts are faster to check one after the
//! other, so they are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::routing::split::{Match, RolloutRule, without_root};

/// The largest number of rollouts that are checked one after the other.
const FEW: usize = 4;

/// A map that exists in memory only, with fixed seeds. Names are read from the file, and their
/// order is never visible.
#[derive(Debug)]
struct Map<T>(HashMap<Box<str>, T, ahash::RandomState>);

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self(HashMap::with_hasher(ahash::RandomState::with_seeds(
            5, 6, 7, 8,
        )))
    }
}

impl<T: Default> Map<T> {
    fn or_new(&mut self, name: &str) -> &mut T {
        self.0.entry(name.into()).or_default()
    }
}

/// The matches of all rollouts, sorted for lookup.
#[derive(Debug, Default)]
pub struct Routes {
    /// The rules in file order.
    rules: Vec<Arc<RolloutRule>>,
    any_host: Paths,
    /// The paths by lower-case host name.
    hosts: Map<Paths>,
    /// The paths by the part of `*.example.org` after the star.
    wildcards: Map<Paths>,
}

/// The rollouts of one host by their path prefix.
#[derive(Debug, Default)]
struct Paths {
    any_path: Vec<usize>,
    prefixes: Map<Vec<usize>>,
    /// The largest number of segments of a prefix. Further segments of a request are not checked.
    deepest: usize,
}

impl Routes {
    /// Sorts rollouts that are given in file order.
    pub fn of(rules: impl IntoIterator<Item = Arc<RolloutRule>>) -> Self {
        let mut routes = Self {
            rules: rules.into_iter().collect(),
            ..Self::default()
        };
        if routes.rules.len() <= FEW {
            return routes;
        }
        for (at, rule) in routes.rules.iter().enumerate() {
            let Match {
                host,
                path,
                methods: _,
            } = &rule.matches;
            let paths = match host.as_deref().map(str::to_ascii_lowercase) {
                None => &mut routes.any_host,
                Some(host) => match host.strip_prefix('*') {
                    None => routes.hosts.or_new(&host),
                    Some(suffix) => routes.wildcards.or_new(suffix),
                },
            };
            match path.as_deref() {
                None | Some("" | "/") => paths.any_path.push(at),
                Some(prefix) => {
                    paths.deepest = paths.deepest.max(boundaries(prefix).count());
                    paths.prefixes.or_new(prefix).push(at);
                }
            }
        }
        routes
    }

    /// Returns the first rollout that applies to a request, as its index in the file. `host` has no
    /// port and may end in the dot of a full name. `path` is normalised and has no query.
    pub fn find(&self, host: &str, path: &str, method: &str) -> Option<usize> {
        if self.rules.len() <= FEW {
            return self
                .rules
                .iter()
                .position(|rule| rule.matches.accepts(host, path, method));
        }
        let mut best = None;
        let takes = |at: usize| {
            let methods = &self.rules[at].matches.methods;
            methods.is_empty() || methods.iter().any(|accepted| &**accepted == method)
        };
        self.any_host.find(path, &takes, &mut best);
        if self.hosts.0.is_empty() && self.wildcards.0.is_empty() {
            return best;
        }
        let host = without_root(host);
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        if let Some(paths) = self.hosts.0.get(&*host) {
            paths.find(path, &takes, &mut best);
        }
        if !self.wildcards.0.is_empty() {
            // The star stands for at least one byte.
            for suffix in (1..=host.len())
                .filter_map(|at| host.get(at..))
                .filter(|suffix| suffix.starts_with('.') || suffix.is_empty())
            {
                if let Some(paths) = self.wildcards.0.get(suffix) {
                    paths.find(path, &takes, &mut best);
                }
            }
        }
        best
    }
}

impl Paths {
    /// Puts the first rollout that matches the path into `best`, if it precedes the one in `best`.
    fn find(&self, path: &str, takes: &impl Fn(usize) -> bool, best: &mut Option<usize>) {
        let mut look = |places: &[usize]| {
            let found = places
                .iter()
                .copied()
                .take_while(|at| best.is_none_or(|best| *at < best))
                .find(|at| takes(*at));
            *best = found.or(*best);
        };
        look(&self.any_path);
        if self.deepest > 0 {
            for end in boundaries(path).take(self.deepest) {
                if let Some(places) = self.prefixes.0.get(&path[..end]) {
                    look(places);
                }
            }
        }
    }
}

/// Returns the positions at which a prefix of a path may end: before each slash except the first
/// byte, and at the end.
fn boundaries(path: &str) -> impl Iterator<Item = usize> {
    path.bytes()
        .enumerate()
        .skip(1)
        .filter(|(_, byte)| *byte == b'/')
        .map(|(at, _)| at)
        .chain([path.len()])
}

/// Returns a host without its port. An IPv6 address also loses its brackets.
pub fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(host, |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::split::tests::rule;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn matches() -> impl Strategy<Value = Match> {
        let host = proptest::option::of(
            select(
                &[
                    "a.example",
                    "b.example",
                    "A.Example",
                    "*.example",
                    "*.b.example",
                    "*",
                    "x",
                ][..],
            )
            .prop_map(Into::into),
        );
        let path = proptest::option::of(
            select(
                &[
                    "/",
                    "/shop",
                    "/shop/cart",
                    "/shop/cart/item",
                    "/shopping",
                    "/a",
                    "/a/b/c/d/e",
                ][..],
            )
            .prop_map(Into::into),
        );
        let methods =
            proptest::collection::vec(select(&["GET", "POST"][..]).prop_map(Into::into), 0..2);
        (host, path, methods).prop_map(|(host, path, methods)| Match {
            host,
            path,
            methods,
        })
    }

    proptest! {
        #[test]
        fn the_sorted_lookup_agrees_with_checking_each_rollout(
            all in proptest::collection::vec(matches(), 0..40),
            host in select(&["a.example", "A.EXAMPLE", "b.example", "c.b.example", "c.b.example.", "A.Example.", ".", ".example", "example", "x", ""][..]),
            path in select(&["/", "", "/shop", "/shop/", "/shop/cart", "/shop/cart/1", "/shop/cart/item/7", "/shops", "/a/b/c/d/e/f", "/a/b", "*"][..]),
            method in select(&["GET", "POST", "PUT"][..]),
        ) {
            let in_turn = all.iter().position(|one| one.accepts(host, path, method));
            let routes = Routes::of(all.iter().map(|one| Arc::new(rule(one.clone()))));
            prop_assert_eq!(routes.find(host, path, method), in_turn);
        }
    }

    #[test]
    fn a_host_with_a_trailing_dot_finds_the_same_rollout() {
        let match_of = |number: usize| Match {
            host: Some(
                format!(
                    "{}shop-{number}.example",
                    if number.is_multiple_of(2) { "*." } else { "" }
                )
                .into(),
            ),
            ..Match::default()
        };
        for many in [2, 40] {
            let routes = Routes::of((0..many).map(|number| Arc::new(rule(match_of(number)))));
            for (host, found) in [
                ("shop-1.example.", Some(1)),
                ("SHOP-1.EXAMPLE.", Some(1)),
                ("a.shop-0.example.", Some(0)),
                ("shop-1.example..", None),
                ("shop-0.example.", None),
            ] {
                assert_eq!(routes.find(host, "/", "GET"), found, "{host} among {many}");
            }
        }
    }

    #[test]
    fn the_first_matching_rollout_of_a_thousand_applies() {
        let match_of = |number: usize| Match {
            path: Some(format!("/service-{}", number % 500).into()),
            ..Match::default()
        };
        let routes = Routes::of((0..1_000).map(|number| Arc::new(rule(match_of(number)))));
        assert_eq!(
            routes.find("shop.example", "/service-499/orders/7", "GET"),
            Some(499)
        );
        assert_eq!(routes.find("shop.example", "/service-500", "GET"), None);
    }

    #[test]
    fn a_port_is_not_part_of_a_host() {
        for (host, bare) in [
            ("shop.example", "shop.example"),
            ("shop.example:8080", "shop.example"),
            ("[::1]:8080", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(without_port(host), bare);
        }
    }
}
