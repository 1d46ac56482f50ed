//! The translation of the file's words into their meaning. Every check that the schema cannot
//! express is here, and each one reports and continues.
//!
//! A wrong value is replaced by its default for the rest of the run, so that one mistake does not
//! hide the next. The report then has an error, and the settings are dropped. A value without a
//! default is an `Option`. Sections: `process` (listen, admin, state, log, routing), `backend`,
//! `rollout`, `guard`. `request` reads the parts about requests (hosts, paths, keys), and `across`
//! compares the rollouts with each other.

mod across;
mod backend;
mod guard;
mod process;
mod request;
mod rollout;

pub use backend::MAX_CA;
pub use rollout::MAX_LIST;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::Rate;

use crate::document::{self, Document};
use crate::duration::{MAX_DURATION, parse_duration, parse_size, write_duration, write_size};
use crate::error::{Problem, Report, Source};
use crate::schema::{self, At, DurationText, File, IncludedFile, Number, RateText, SizeText};
use crate::settings::Settings;
use crate::shape::RATE_SHAPE;
use crate::text::{clip, nearest};
use crate::world::World;

/// A mistake in a text, without its position: what was expected and found, and what to type.
struct Fault {
    what: String,
    hint: Option<String>,
}

impl Fault {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }
}

/// Reads all files, starting with the main file. `None` leaves at least one error in the report.
pub(crate) fn lower(
    main: &Arc<Source>,
    mut world: World<'_>,
    report: &mut Report,
) -> Option<Settings> {
    let loader = world.loader();
    let env = |name: &str| loader.env(name);
    let Document {
        source,
        file,
        backend_names,
        has_rollouts,
    } = document::read::<File>(main, schema::main_file(), &env, report)?;
    let mut drafts = Vec::new();
    let mut has_rollouts = has_rollouts;
    let File {
        include,
        listen,
        admin,
        state,
        log,
        traces,
        backend,
        routing,
        rollout,
        notify,
    } = file;

    let mut lower = Lower {
        source: &source,
        report,
        context: String::new(),
    };
    let admin = lower.admin(admin.unwrap_or_default());
    let listen = lower.listen(listen.unwrap_or_default(), admin.as_ref());
    let state = lower.state(state.unwrap_or_default());
    let log = lower.log(log.unwrap_or_default());
    let traces = traces.map(|traces| lower.traces(traces));
    let backends = lower.backends(backend.unwrap_or_default(), &mut world);
    for notify in notify.iter().flatten() {
        lower.refuse(
            notify.span.clone(),
            "[[notify]]",
            "remove it; `cutover history` and the log say what happened",
        );
    }
    if backend_names.is_empty() {
        let problem = lower.source.error(
            0..0,
            "there is no [backend.*] table: nothing to send requests to",
        );
        lower.report.push(
            problem.label("the whole file").hint(
                "write [backend.legacy] and [backend.new], each with servers = [\"host:port\"]",
            ),
        );
    }
    let routing = lower.routing(routing, &backend_names);
    let included = lower.includes(include.as_deref().unwrap_or_default(), &mut world);
    for rollout in rollout.into_iter().flatten().enumerate() {
        drafts.push(lower.rollout(rollout, &backend_names, &mut world));
    }
    for path in included {
        let Ok(source) = world.read(&path) else {
            continue;
        };
        let Some(document) =
            document::read::<IncludedFile>(&source, schema::included_file(), &env, report)
        else {
            has_rollouts = true;
            continue;
        };
        has_rollouts |= document.has_rollouts;
        if !document.has_rollouts {
            report.push(
                source
                    .warning(0..0, "this included file holds no [[rollout]]")
                    .label("the whole file"),
            );
        }
        let mut lower = Lower {
            source: &source,
            report,
            context: String::new(),
        };
        for rollout in document.file.rollout.into_iter().flatten().enumerate() {
            drafts.push(lower.rollout(rollout, &backend_names, &mut world));
        }
    }
    if !has_rollouts {
        let problem = source.error(0..0, "there is no [[rollout]]: nothing would ever move");
        report.push(problem.label("the whole file").hint(
            "write a [[rollout]] with id, percent and key; percent = 0 keeps everybody on legacy",
        ));
    }
    across::check(&drafts, backends.as_deref().unwrap_or_default(), report);

    let rollout_files: BTreeMap<String, String> = drafts
        .iter()
        .filter_map(|draft| Some((draft.id.clone()?, draft.source.name.clone())))
        .collect();
    let rollouts = drafts
        .into_iter()
        .map(|draft| draft.settings)
        .collect::<Option<Vec<_>>>();
    let (files, digest) = world.finish();
    Some(Settings {
        listen: listen?,
        admin: admin?,
        state,
        log,
        traces: traces.map_or(Some(None), |traces| traces.map(Some))?,
        backends: backends?,
        routing: routing?,
        rollouts: rollouts?,
        rollout_files,
        warnings: Vec::new(),
        digest,
        files,
    })
}

/// The state while reading one file. `context` is the beginning of messages: empty, or the rollout
/// that they concern.
struct Lower<'a> {
    source: &'a Arc<Source>,
    report: &'a mut Report,
    context: String,
}

impl Lower<'_> {
    /// Creates an error about a key. It must be pushed after its label and hint have been added.
    fn error(&self, span: &Range<usize>, key: &str, what: impl AsRef<str>) -> Problem {
        self.source.error(
            span.clone(),
            format!("{}{key}: {}", self.context, what.as_ref()),
        )
    }

    fn warning(&self, span: &Range<usize>, key: &str, what: impl AsRef<str>) -> Problem {
        self.source.warning(
            span.clone(),
            format!("{}{key}: {}", self.context, what.as_ref()),
        )
    }

    /// Reports a fault at its position, or returns the value.
    fn settle<T>(&mut self, span: &Range<usize>, key: &str, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                let problem = self
                    .error(span, key, fault.what)
                    .label("this value")
                    .maybe_hint(fault.hint);
                self.report.push(problem);
                None
            }
        }
    }

    /// Refuses a key that is part of the file's language but not implemented yet. It is never
    /// ignored.
    fn refuse(&mut self, span: Range<usize>, what: &str, hint: &str) {
        let problem = self
            .source
            .error(span, format!("{}{what} is not supported yet", self.context));
        self.report
            .push(problem.label("not supported yet").hint(hint));
    }

    /// Returns a duration within limits, or its default.
    fn duration(
        &mut self,
        at: Option<&At<DurationText>>,
        key: &str,
        default: &str,
        least: Duration,
        most: Duration,
    ) -> Duration {
        let default = parse_duration(default).unwrap_or(MAX_DURATION);
        let Some(at) = at else { return default };
        let text = &at.value.0;
        let result = parse_duration(text)
            .map_err(|what| Fault {
                hint: duration_hint(text),
                what,
            })
            .and_then(|duration| {
                if duration >= least && duration <= most {
                    return Ok(duration);
                }
                let most = if most == MAX_DURATION {
                    "10 years".to_owned()
                } else {
                    format!("{:?}", write_duration(most))
                };
                Err(Fault {
                    what: format!(
                        "expected a duration from {:?} to {most}, found {text:?}",
                        write_duration(least)
                    ),
                    hint: None,
                })
            });
        self.settle(&at.span, key, result).unwrap_or(default)
    }

    /// Returns a timeout that is long enough to be meaningful, or its default.
    fn timeout(&mut self, at: Option<&At<DurationText>>, key: &str, default: &str) -> Duration {
        self.duration(at, key, default, Duration::from_millis(1), MAX_DURATION)
    }

    /// Returns a size within limits, or its default.
    fn size(
        &mut self,
        at: Option<&At<SizeText>>,
        key: &str,
        default: &str,
        least: u64,
        most: u64,
    ) -> u64 {
        let default = parse_size(default).unwrap_or(least);
        let Some(at) = at else { return default };
        let text = &at.value.0;
        let result = parse_size(text)
            .map_err(|what| Fault {
                what,
                hint: size_hint(text),
            })
            .and_then(|size| {
                if size >= least && size <= most {
                    return Ok(size);
                }
                let most = if most == u64::MAX {
                    "up".to_owned()
                } else {
                    format!("to {:?}", write_size(most))
                };
                Err(Fault {
                    what: format!(
                        "expected a size from {:?} {most}, found {text:?}",
                        write_size(least)
                    ),
                    hint: None,
                })
            });
        self.settle(&at.span, key, result).unwrap_or(default)
    }

    /// Returns a share of requests, or its default.
    fn share(&mut self, at: Option<&At<RateText>>, key: &str, default: &str) -> Rate {
        let share = match at {
            Some(at) => self.share_of(at, key),
            None => Rate::parse(default).ok(),
        };
        // It is missing only together with a problem that has been reported.
        share.unwrap_or(Rate::NONE)
    }

    fn share_of(&mut self, at: &At<RateText>, key: &str) -> Option<Rate> {
        let text = &at.value.0;
        let result = Rate::parse(text).map_err(|error| {
            let number = text.trim().trim_end_matches('%').trim_end();
            let hint = number
                .parse::<f64>()
                .ok()
                .filter(|number| (0.0..=100.0).contains(number) && !text.contains('%'))
                .map(|_| format!("write \"{number}%\""));
            Fault {
                what: format!(
                    "expected {RATE_SHAPE} from 0% to 100%, found {}: {error}",
                    crate::text::quote(text)
                ),
                hint,
            }
        });
        self.settle(&at.span, key, result)
    }

    /// Returns a number as its author wrote it, so that decimals stay exact. Where TOML allows more
    /// than digits and a point, it is returned in its shortest form.
    fn digits(&self, at: &At<Number>) -> String {
        let written = self
            .source
            .text
            .get(at.span.clone())
            .unwrap_or_default()
            .replace('_', "");
        let written = written.strip_prefix('+').unwrap_or(&written);
        let is_decimal = !written.is_empty()
            && written
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_decimal {
            written.to_owned()
        } else {
            at.value.0.clone()
        }
    }

    /// Returns the name of an existing backend, or its default.
    fn backend_name(
        &mut self,
        at: Option<&At<String>>,
        header: &Range<usize>,
        key: &str,
        default: &str,
        names: &[String],
    ) -> Option<Arc<str>> {
        let name = at.map_or(default, |at| &at.value);
        if names.iter().any(|known| known == name) {
            return Some(name.into());
        }
        // Without any backend there is one problem, and it has already been reported.
        if names.is_empty() {
            return None;
        }
        let (table, last) = key.rsplit_once('.').unwrap_or(("", key));
        let problem = match at {
            Some(at) => {
                let hint = match nearest(name, names.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!(
                        "the backends are {}; or add [backend.{}]",
                        names.join(", "),
                        crate::text::key(name)
                    ),
                };
                self.error(
                    &at.span,
                    key,
                    format!("there is no backend {}", crate::text::quote(name)),
                )
                .label("no such backend")
                .hint(hint)
            }
            None => {
                let below = if header.is_empty() {
                    format!("[{table}] and below it ")
                } else {
                    String::new()
                };
                let problem = self
                    .error(
                        header,
                        key,
                        format!("there is no backend {name:?}, which is the default"),
                    )
                    .label(format!("no {last} here"));
                problem.hint(format!(
                    "write {below}{last} = \"NAME\", with a name of {}",
                    names.join(", ")
                ))
            }
        };
        self.report.push(problem);
        None
    }

    /// Returns the files that `include` names, in its order, each once, without the main file
    /// itself.
    fn includes(&mut self, patterns: &[At<String>], world: &mut World<'_>) -> Vec<String> {
        let mut paths = Vec::new();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let main = self.source.name.as_str();
        let main_file = main.rsplit('/').next().unwrap_or(main);
        for (index, pattern) in patterns.iter().enumerate() {
            let key = format!("include[{}]", index + 1);
            let text = pattern.value.as_str();
            let is_pattern = text.contains(['*', '?', '[']);
            let found = match (text.is_empty(), is_pattern) {
                (true, _) => Err("expected a path, found an empty string".to_owned()),
                (false, false) => Ok(vec![text.to_owned()]),
                (false, true) => world
                    .glob(text)
                    .map_err(|reason| format!("cannot look for {}: {reason}", clip(text))),
            };
            match found {
                Err(what) => {
                    let problem = self.error(&pattern.span, &key, what).label("this path");
                    self.report
                        .push(problem.hint("paths are relative to the folder of the main file"));
                }
                Ok(found) => {
                    if found.is_empty() {
                        let problem = self
                            .warning(
                                &pattern.span,
                                &key,
                                format!("no file matches {}", clip(text)),
                            )
                            .label("matches nothing");
                        self.report.push(
                            problem.hint("paths are relative to the folder of the main file"),
                        );
                    }
                    for path in found.into_iter().filter(|path| {
                        path != main && !(is_pattern && path.trim_start_matches("./") == main_file)
                    }) {
                        if !seen.insert(path.clone()) {
                            continue;
                        }
                        match world.include(&path) {
                            Ok(_) => paths.push(path),
                            Err(reason) => {
                                let problem = self
                                    .error(
                                        &pattern.span,
                                        &key,
                                        format!("cannot read {}: {reason}", clip(&path)),
                                    )
                                    .label("named here");
                                self.report.push(
                                    problem
                                        .hint("paths are relative to the folder of the main file"),
                                );
                            }
                        }
                    }
                }
            }
        }
        paths
    }
}

/// Returns how to write what was probably meant, if that would be accepted.
fn duration_hint(text: &str) -> Option<String> {
    let compact: String = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect::<String>()
        .to_lowercase();
    if !compact.is_empty() && compact.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(format!(
            "write \"{compact}s\" for seconds, \"{compact}ms\" for milliseconds"
        ));
    }
    let digits = compact
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
        .count();
    let (number, unit) = compact.split_at(digits);
    let (unit, millis) = match unit {
        "ms" | "millis" | "milliseconds" | "msec" => ("ms", 1.0),
        "s" | "sec" | "secs" | "second" | "seconds" => ("s", 1e3),
        "m" | "min" | "mins" | "minute" | "minutes" => ("m", 60e3),
        "h" | "hour" | "hours" => ("h", 3.6e6),
        "d" | "day" | "days" => ("d", 86.4e6),
        "w" | "week" | "weeks" => ("w", 604.8e6),
        _ => return None,
    };
    let value: f64 = number.parse().ok()?;
    if unit != "w" && value.fract() == 0.0 {
        let written = format!("{value}{unit}");
        return parse_duration(&written)
            .is_ok()
            .then(|| format!("write {written:?}"));
    }
    let millis = value * millis;
    let whole = millis.fract() == 0.0 && millis <= MAX_DURATION.as_millis() as f64;
    whole.then(|| {
        format!(
            "write {:?}",
            write_duration(Duration::from_millis(millis as u64))
        )
    })
}

fn size_hint(text: &str) -> Option<String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit = match text[digits..].trim().to_lowercase().as_str() {
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => return None,
    };
    (digits > 0).then(|| format!("write \"{}{unit}\"", &text[..digits]))
}
