//! The scenarios that come with the kit, by name.

/// Name and text of each.
pub const BUILT_IN: [(&str, &str); 8] = [
    ("steady", include_str!("../../scenarios/steady.toml")),
    ("ramp", include_str!("../../scenarios/ramp.toml")),
    ("breach", include_str!("../../scenarios/breach.toml")),
    ("rollback", include_str!("../../scenarios/rollback.toml")),
    (
        "reload-storm",
        include_str!("../../scenarios/reload-storm.toml"),
    ),
    (
        "slow-clients",
        include_str!("../../scenarios/slow-clients.toml"),
    ),
    ("capacity", include_str!("../../scenarios/capacity.toml")),
    ("soak", include_str!("../../scenarios/soak.toml")),
];

/// The text of the scenario of this name.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::BUILT_IN;
    use crate::scenario::Scenario;

    #[test]
    fn every_scenario_that_comes_with_the_kit_is_read() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
            assert!(
                !scenario.title.is_empty() && !scenario.about.is_empty(),
                "{name}"
            );
        }
    }
}
