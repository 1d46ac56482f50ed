//! The demo shows the product's main job in one command. It must print every step, and each step
//! must be true.

use std::process::Command;

#[test]
fn the_demo_prints_its_steps_and_asserts_them() {
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(["demo", "--headless", "--assert", "--json"])
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    let events: Vec<serde_json::Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for event in ["start", "ramp", "break", "rollback", "latch", "end"] {
        assert!(
            events.iter().any(|told| told["event"] == event),
            "{event} is missing: {stdout}"
        );
    }
    assert!(stdout.contains("users hurt"), "{stdout}");
}
