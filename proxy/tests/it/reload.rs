//! The watched file: every way of saving it, and every way of breaking it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Instant;

use crate::harness::{Backend, Behaviour, Load, PATIENCE, Proxy, rollout, until};

fn desired(proxy: &Proxy) -> f64 {
    proxy.rollout()["desired_percent"].as_f64().unwrap()
}

fn is_followed(proxy: &Proxy, percent: f64, way: &str) {
    until(&format!("{percent} % after {way}"), || {
        (desired(proxy) == percent).then_some(())
    });
}

#[test]
fn every_way_of_saving_is_followed_without_a_failed_request() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let load = Load::start(proxy.http, 4);
    let text = |percent: &str| proxy.text_with("", &rollout("checkout", percent, ""));
    let beside = proxy.directory.path().join("cutover.toml.new");
    let mut percent = 0u32;
    let mut next = || {
        percent += 1;
        (f64::from(percent), percent.to_string())
    };

    for _ in 0..3 {
        let (number, share) = next();
        fs::write(proxy.file(), text(&share)).unwrap();
        is_followed(&proxy, number, "writing in place");

        let (number, share) = next();
        fs::write(&beside, text(&share)).unwrap();
        fs::rename(&beside, proxy.file()).unwrap();
        is_followed(&proxy, number, "an atomic save");

        let (number, share) = next();
        fs::rename(proxy.file(), proxy.directory.path().join("cutover.toml~")).unwrap();
        fs::write(proxy.file(), text(&share)).unwrap();
        is_followed(&proxy, number, "a backup by renaming and a new file");

        let (number, share) = next();
        fs::remove_file(proxy.file()).unwrap();
        fs::write(proxy.file(), text(&share)).unwrap();
        is_followed(&proxy, number, "deleting and writing");

        let (number, share) = next();
        let whole = text(&share);
        fs::write(proxy.file(), "").unwrap();
        fs::write(proxy.file(), whole).unwrap();
        is_followed(&proxy, number, "truncating and writing");

        fs::set_permissions(proxy.file(), fs::Permissions::from_mode(0o600)).unwrap();
        let (number, share) = next();
        fs::write(proxy.file(), text("77")).unwrap();
        fs::write(proxy.file(), text(&share)).unwrap();
        is_followed(&proxy, number, "two quick saves and a changed mode");
    }
    assert!(load.answered() > 100);
    assert_eq!(load.end(), Vec::<String>::new());
}

#[test]
fn the_data_link_swap_of_a_configuration_map_is_followed() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let root = proxy.directory.path();
    let version = |name: &str, percent: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(
            root.join(name).join("cutover.toml"),
            proxy.text_with("", &rollout("checkout", percent, "")),
        )
        .unwrap();
    };
    version("..2026_1", "1");
    symlink("..2026_1", root.join("..data")).unwrap();
    fs::remove_file(proxy.file()).unwrap();
    symlink("..data/cutover.toml", proxy.file()).unwrap();
    is_followed(&proxy, 1.0, "the file became a link");
    for (number, name) in [(2.0, "..2026_2"), (3.0, "..2026_3")] {
        version(name, &number.to_string());
        symlink(name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        is_followed(&proxy, number, "the swap of `..data`");
    }
    fs::write(
        root.join("..2026_3/cutover.toml"),
        proxy.text_with("", &rollout("checkout", "4", "")),
    )
    .unwrap();
    is_followed(&proxy, 4.0, "writing into what the link leads to");
}

#[test]
fn a_broken_file_changes_nothing_and_says_what_is_wrong() {
    let proxy = Proxy::start(&rollout("checkout", "25", ""));
    let good = proxy.text();
    let load = Load::start(proxy.http, 2);
    let broken: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("blank", " \n\n".to_owned()),
        ("cut off", good[..good.len() / 2].to_owned()),
        (
            "an unknown key",
            good.replace("percent = 25", "percnt = 25"),
        ),
        (
            "a percent sign",
            good.replace("percent = 25", "percent = \"25%\""),
        ),
        (
            "out of range",
            good.replace("percent = 25", "percent = 101"),
        ),
        (
            "too many decimals",
            good.replace("percent = 25", "percent = 25.00001"),
        ),
        (
            "a key twice",
            good.replace("percent = 25", "percent = 25\npercent = 26"),
        ),
        (
            "two rollouts with one id",
            format!("{good}\n{}", rollout("checkout", "30", "")),
        ),
        (
            "an unknown backend",
            good.replace("percent = 25", "percent = 25\nnew = \"nwe\""),
        ),
        (
            "an unclosed string",
            good.replace("id = \"checkout\"", "id = \"checkout"),
        ),
        ("binary", "\u{0}\u{1}\u{2}".to_owned()),
        (
            "no rollouts",
            good.split("[[rollout]]").next().unwrap().to_owned(),
        ),
        (
            "a guard with a misspelt mode",
            format!("{good}\n[rollout.guard]\nmode = \"sequentiel\"\n"),
        ),
        ("no key", good.replace("key = [\"header:x-user-id\"]", "")),
    ];
    for (what, text) in &broken {
        fs::write(proxy.file(), text).unwrap();
        let problems = until(&format!("the problems of a file with {what}"), || {
            let config = &proxy.status()["config"];
            (config["last_reload_successful"] == false)
                .then(|| config["problems"].as_str().unwrap().to_owned())
        });
        assert!(problems.contains("cutover.toml"), "{what}: {problems}");
        assert_eq!(desired(&proxy), 25.0, "{what}");
        assert_eq!(
            proxy.metric("cutover_config_last_reload_successful"),
            Some(0.0),
            "{what}"
        );
        let refused = proxy.post("/api/v1/reload", &serde_json::json!({}));
        assert_eq!(
            (refused.status(), refused.json()["error"]["code"].as_str()),
            (422, Some("config_rejected")),
            "{what}"
        );
        fs::write(proxy.file(), &good).unwrap();
        until("the good file", || {
            (proxy.status()["config"]["last_reload_successful"] == true).then_some(())
        });
    }
    fs::remove_file(proxy.file()).unwrap();
    until("the missing file to be told", || {
        proxy.status()["config"]["problems"]
            .as_str()
            .is_some_and(|problems| problems.contains("No such file"))
            .then_some(())
    });
    assert_eq!(desired(&proxy), 25.0);
    fs::create_dir(proxy.file()).unwrap();
    until("the directory to be told", || {
        proxy.status()["config"]["problems"]
            .as_str()
            .is_some_and(|problems| problems.contains("is a directory"))
            .then_some(())
    });
    assert_eq!(load.end(), Vec::<String>::new());
}

#[test]
fn a_reload_keeps_the_pools_warm() {
    let proxy = Proxy::start(&rollout("checkout", "50", ""));
    let mut client = proxy.client();
    let mut round = || {
        for user in 0..40 {
            assert_eq!(
                client
                    .ask("GET", "/", &[("x-user-id", &format!("user-{user}"))], b"")
                    .unwrap()
                    .status(),
                200
            );
        }
    };
    round();
    let before = (proxy.legacy.connections(), proxy.new.connections());
    for percent in ["51", "52", "53", "54", "55"] {
        proxy.save(&rollout("checkout", percent, ""));
        round();
    }
    assert_eq!(
        (proxy.legacy.connections(), proxy.new.connections()),
        before,
        "no reload opened a new connection"
    );
}

#[test]
fn files_that_a_file_draws_in_are_followed() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    fs::write(
        proxy.directory.path().join("testers.txt"),
        "# nobody\nana\n",
    )
    .unwrap();
    fs::write(
        proxy.file(),
        proxy.text_with(
            "",
            &rollout("checkout", "0", "always_new = [\"file:testers.txt\"]"),
        ),
    )
    .unwrap();
    until("ana to be on new", || {
        (proxy.side_of("ana") == "new").then_some(())
    });
    fs::write(proxy.directory.path().join("testers.txt"), "bob\n").unwrap();
    until("bob to be on new", || {
        (proxy.side_of("bob") == "new").then_some(())
    });
    assert_eq!(proxy.side_of("ana"), "legacy");
}

#[test]
fn keys_that_need_a_restart_keep_their_values_and_are_named() {
    let proxy = Proxy::start(&rollout("checkout", "5", ""));
    fs::write(
        proxy.file(),
        proxy.text_with(
            "[listen]\nhttp = [\"127.0.0.1:1\"]\nmax_connections = 7\n",
            &rollout("checkout", "6", ""),
        ),
    )
    .unwrap();
    is_followed(&proxy, 6.0, "a change of both kinds");
    let config = proxy.status()["config"].clone();
    assert_eq!(config["last_reload_successful"], true);
    let named = config["restart_needed"].to_string();
    assert!(
        named.contains("listen.http") && named.contains("listen.max_connections"),
        "{named}"
    );
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 200);
}

#[test]
fn a_request_sees_one_version_of_a_file_that_is_swapped_100_times() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    let load = Load::start(proxy.http, 4);
    let began = Instant::now();
    for round in 0..50 {
        proxy.save(&rollout(
            "checkout",
            if round % 2 == 0 { "0" } else { "100" },
            "",
        ));
    }
    assert_eq!(load.end(), Vec::<String>::new(), "in {:?}", began.elapsed());
}

#[test]
fn a_busy_log_beside_the_file_does_not_hide_an_edit() {
    let proxy = Proxy::start(&rollout("checkout", "0", ""));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = fs::File::create(proxy.directory.path().join("busy.log")).unwrap();
            // The loop is bounded, so that a failed test also ends.
            let deadline = Instant::now() + PATIENCE;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) && Instant::now() < deadline {
                std::io::Write::write_all(&mut log, b"a line\n").unwrap();
                log.set_len(0).unwrap();
            }
        });
        for percent in 1..=20u32 {
            fs::write(
                proxy.file(),
                proxy.text_with("", &rollout("checkout", &percent.to_string(), "")),
            )
            .unwrap();
            is_followed(&proxy, f64::from(percent), "an edit beside a busy log");
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn the_first_users_of_new_find_open_connections() {
    let new = Backend::start("warm");
    // Checks run once a minute, so that every connection in the meantime is from a warm-up or a
    // request.
    let tables = format!(
        "[backend.new]\nservers = [\"{}\"]\nhealth = {{ path = \"/healthz\", interval = \"60s\" \
         }}\n",
        new.address
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "0", ""));
    until("the first check", || (new.requests() == 1).then_some(()));
    fs::write(
        proxy.file(),
        proxy.text_with(&tables, &rollout("checkout", "100", "")),
    )
    .unwrap();
    is_followed(&proxy, 100.0, "a raise");
    until("one check and four of the warm-up", || {
        (new.requests() >= 5).then_some(())
    });
    let (connections, head) = (new.connections(), new.last_head());
    assert!(
        head.starts_with("GET /healthz HTTP/1.1\r\n")
            && head.to_lowercase().contains("user-agent: cutover-warm-up/"),
        "{head}"
    );
    assert!(
        connections > 2,
        "one of the check, and more than one for users"
    );
    // All requests use one connection, because a client that leaves at once occasionally closes the
    // backend's connection with it.
    let mut client = proxy.client();
    for user in 0..10 {
        assert_eq!(
            client
                .ask("GET", "/", &[("x-user-id", &format!("u{user}"))], b"")
                .unwrap()
                .side(),
            "warm"
        );
    }
    until("the users to be counted", || {
        (proxy.rollout()["new"]["requests"].as_u64() == Some(10)).then_some(())
    });
    // The engine gives up a kept connection if it is requested at the moment in which it is
    // returned.
    assert!(
        new.connections() <= connections + 2,
        "ten users opened {} more",
        new.connections() - connections
    );
    // A raise of a backend in use warms nothing up, and nothing waits for a backend that hangs.
    let requests = new.requests();
    for percent in ["50", "60"] {
        fs::write(
            proxy.file(),
            proxy.text_with(&tables, &rollout("checkout", percent, "")),
        )
        .unwrap();
        is_followed(&proxy, percent.parse().unwrap(), "another share");
    }
    assert_eq!(new.requests(), requests);
    fs::write(
        proxy.file(),
        proxy.text_with(&tables, &rollout("checkout", "0", "")),
    )
    .unwrap();
    is_followed(&proxy, 0.0, "a drop");
    new.behave(Behaviour::Hang);
    fs::write(
        proxy.file(),
        proxy.text_with(&tables, &rollout("checkout", "10", "")),
    )
    .unwrap();
    is_followed(&proxy, 10.0, "a raise before a backend that hangs");
    assert_eq!(
        proxy.rollout()["new"]["failed"],
        0,
        "prewarming is no user's request"
    );
}
