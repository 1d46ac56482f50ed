//! The built-in scenarios, by name.

/// The name and text of each built-in scenario.
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

/// Returns the text of the built-in scenario with this name.
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
    fn every_built_in_scenario_is_valid() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
            assert!(
                !scenario.title.is_empty() && !scenario.about.is_empty(),
                "{name}"
            );
        }
    }
}
