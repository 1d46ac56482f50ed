//! The protocol between two processes while one takes over from the other. Messages are JSON with a
//! length prefix, and listening sockets are passed along, over a pair of Unix sockets.
//!
//! The pair has no name: the new process receives its end as standard input. No other process can
//! therefore take its place, and there is no file to protect or to leave behind.
//!
//! ```text
//! new      Hello               it has read its file
//! old      Offer + sockets     it has saved everything and released the state directory
//! new      Ready               it accepts requests
//! new      Lead ...            whatever it has in force, at each change
//! old      Tripped ...         each rollback it has decided on its remaining requests
//! ```
//!
//! An old process of another version refuses at Hello, and continues. This module defines the
//! messages; `upgrade` defines when they are sent.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cutover_core::control::rollout::Handover;
use cutover_core::guard::judge::{Handover as JudgeHandover, PartHandover};
use cutover_core::{Actor, Lead, LedRollout, Maintenance, Mono, Percent, Restriction, Via};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::process::sockets::{Purpose, Socket};
use crate::shared::control_handle::{Handovers, Tripped};
use crate::state::status_file;
use crate::status::TripStatus;

/// The version of the protocol. Any other version is refused.
pub const PROTOCOL: u32 = 1;
/// The longest message in bytes. The evidence of a thousand rollouts is a few megabytes.
const LONGEST: usize = 64 << 20;
/// The number of sockets in one message; the kernel accepts at most 253.
const AT_ONCE: usize = 64;

/// A message between the two processes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Message {
    /// The new process has read its file and wants to take over.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The version of the new process, for the log.
        version: String,
    },
    /// The new process cannot take over.
    Failed {
        /// The reason of the failure.
        why: String,
    },
    /// Everything that the new process needs. The sockets follow.
    Offer(Offer),
    /// The new process accepts requests.
    Ready,
    /// What the new process has in force.
    Lead {
        /// The number of [`Message::Tripped`] messages that are included.
        acknowledged: u64,
        /// What is in force, by rollout.
        rollouts: Vec<Led>,
        /// Maintenance of requests that match no rollout.
        maintenance: Kept,
    },
    /// The old process has rolled back.
    Tripped {
        /// The rollout that was rolled back.
        rollout: String,
        /// What happened.
        trip: Box<TripStatus>,
        /// Who caused the rollback.
        actor: String,
        /// The source of the rollback.
        source: String,
        /// The reason of the rollback.
        reason: String,
    },
}

/// What the new process needs in addition to the state directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The time of the monotonic clock, which the new process continues.
    pub clock_us: u64,
    /// The purposes and configured addresses of the sockets that follow, in order.
    pub sockets: Vec<(Purpose, SocketAddr)>,
    /// The state of each rollout.
    #[serde(rename = "estate")]
    pub handover: Vec<Known>,
}

/// The state of one rollout, in addition to its saved standing.
#[derive(Debug, Serialize, Deserialize)]
pub struct Known {
    rollout: String,
    share: u32,
    raised_at_us: Option<u64>,
    frozen: Option<(u32, u64, String)>,
    compares_from_us: Option<u64>,
    #[serde(default)]
    warm_until_us: Option<u64>,
    #[serde(default)]
    ever: Vec<(String, Vec<(u64, f64)>)>,
    alone: bool,
    rules: Vec<(String, Vec<KnownPart>)>,
}

type KnownPart = (Vec<f64>, Option<(f64, Vec<f64>)>);

/// What is in force for one rollout.
#[derive(Debug, Serialize, Deserialize)]
pub struct Led {
    rollout: String,
    share: u32,
    latched: bool,
    maintenance: Kept,
}

/// The maintenance mode, and its end on the clock that both processes share.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    mode: String,
    until_us: Option<u64>,
}

impl Kept {
    fn of(restriction: Restriction) -> Self {
        Self {
            mode: restriction.mode.name().to_owned(),
            until_us: restriction.until.map(Mono::as_micros),
        }
    }

    fn restore(&self) -> io::Result<Restriction> {
        let mode = Maintenance::of_name(&self.mode)
            .ok_or_else(|| wrong(format!("{:?} is no mode of maintenance", self.mode)))?;
        Ok(Restriction {
            mode,
            until: self.until_us.map(Mono::from_micros),
        })
    }
}

fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn share(thousandths: u32) -> io::Result<Percent> {
    Percent::from_thousandths(thousandths)
        .ok_or_else(|| wrong(format!("{thousandths} thousandths are no share")))
}

/// Serialises the state of each rollout.
pub fn estate_of(handover: &Handovers) -> Vec<Known> {
    let part = |part: &PartHandover| (part.evidence.clone(), part.alone.clone());
    let known = |(id, handover): (&Arc<str>, &Handover)| Known {
        rollout: id.to_string(),
        share: handover.share.thousandths(),
        raised_at_us: handover.raised_at.map(Mono::as_micros),
        frozen: handover
            .frozen
            .as_ref()
            .map(|(share, last, why)| (share.thousandths(), last.as_micros(), why.clone())),
        compares_from_us: handover.judge.compares_from.map(Mono::as_micros),
        warm_until_us: handover.judge.warm_until.map(Mono::as_micros),
        ever: handover
            .judge
            .ever
            .iter()
            .map(|(rule, known)| {
                (
                    rule.clone(),
                    known
                        .iter()
                        .map(|(at, rate)| (at.as_micros(), *rate))
                        .collect(),
                )
            })
            .collect(),
        alone: handover.judge.alone,
        rules: handover
            .judge
            .rules
            .iter()
            .map(|(rule, parts)| (rule.clone(), parts.iter().map(part).collect()))
            .collect(),
    };
    handover.iter().map(known).collect()
}

/// Restores the state of each rollout.
///
/// # Errors
/// Names the part that is invalid.
pub fn restore_handover(known: Vec<Known>) -> io::Result<Handovers> {
    let restore = |known: Known| {
        let part = |(evidence, alone): KnownPart| PartHandover { evidence, alone };
        let rules = known
            .rules
            .into_iter()
            .map(|(rule, parts)| (rule, parts.into_iter().map(part).collect()))
            .collect();
        let frozen = known
            .frozen
            .map(|(frozen, last, why)| {
                io::Result::Ok((share(frozen)?, Mono::from_micros(last), why))
            })
            .transpose()?;
        let ever = known
            .ever
            .into_iter()
            .map(|(rule, known)| {
                (
                    rule,
                    known
                        .into_iter()
                        .map(|(at, rate)| (Mono::from_micros(at), rate))
                        .collect(),
                )
            })
            .collect();
        let judge = JudgeHandover {
            rules,
            compares_from: known.compares_from_us.map(Mono::from_micros),
            warm_until: known.warm_until_us.map(Mono::from_micros),
            ever,
            alone: known.alone,
        };
        Ok((
            Arc::from(known.rollout),
            Handover {
                judge,
                share: share(known.share)?,
                raised_at: known.raised_at_us.map(Mono::from_micros),
                frozen,
            },
        ))
    };
    known
        .into_iter()
        .map(restore)
        .collect::<io::Result<BTreeMap<_, _>>>()
}

impl Message {
    /// Builds the message about what is in force.
    pub fn of_lead(lead: &Lead, acknowledged: u64) -> Self {
        let led = |led: &LedRollout| Led {
            rollout: led.id.to_string(),
            share: led.percent.thousandths(),
            latched: led.latched,
            maintenance: Kept::of(led.maintenance),
        };
        Self::Lead {
            acknowledged,
            rollouts: lead.rollouts.iter().map(led).collect(),
            maintenance: Kept::of(lead.maintenance),
        }
    }

    /// Builds the message about a rollback.
    pub fn of_trip(tripped: &Tripped) -> Self {
        let Tripped {
            rollout,
            trip,
            actor,
            reason,
        } = tripped;
        Self::Tripped {
            rollout: rollout.clone(),
            trip: Box::new(TripStatus::new(trip)),
            actor: actor.name.clone(),
            source: actor.source.name().to_owned(),
            reason: reason.clone(),
        }
    }
}

/// Restores what is in force from a message.
///
/// # Errors
/// Names the part that is invalid.
pub fn restore_lead(rollouts: Vec<Led>, maintenance: &Kept) -> io::Result<Lead> {
    let restore = |led: Led| {
        Ok(LedRollout {
            percent: share(led.share)?,
            latched: led.latched,
            maintenance: led.maintenance.restore()?,
            id: Arc::from(led.rollout),
        })
    };
    Ok(Lead {
        rollouts: rollouts
            .into_iter()
            .map(restore)
            .collect::<io::Result<_>>()?,
        maintenance: maintenance.restore()?,
    })
}

/// Restores a rollback from a message.
///
/// # Errors
/// Names the part that is invalid.
pub fn restore_trip(
    rollout: String,
    trip: TripStatus,
    actor: String,
    source: &str,
    reason: String,
) -> io::Result<Tripped> {
    let source = Via::of_name(source).ok_or_else(|| wrong(format!("{source:?} is no source")))?;
    Ok(Tripped {
        rollout,
        trip: status_file::trip(trip).map_err(wrong)?,
        actor: Actor {
            name: actor,
            source,
        },
        reason,
    })
}

/// Sends a message.
///
/// # Errors
/// Fails when the other end is gone.
pub fn say(mut stream: &UnixStream, word: &Message) -> io::Result<()> {
    let text = serde_json::to_vec(word)?;
    let length = u32::try_from(text.len())
        .map_err(|_| wrong(format!("a word of {} bytes is too long", text.len())))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&text)
}

/// Waits for a message.
///
/// # Errors
/// `UnexpectedEof` when the other end is gone, `WouldBlock` when the time limit of the stream is
/// over, `InvalidData` when the message is malformed.
pub fn hear(mut stream: &UnixStream) -> io::Result<Message> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(wrong(format!("a word of {length} bytes is too long")));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Passes sockets to the other end.
///
/// # Errors
/// Fails when the other end is gone.
pub fn pass(stream: &UnixStream, sockets: &[Socket]) -> io::Result<()> {
    for some in sockets.chunks(AT_ONCE) {
        let fds: Vec<BorrowedFd<'_>> = some.iter().map(|socket| socket.listener.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(
            stream,
            &[IoSlice::new(b"s")],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
    Ok(())
}

/// Receives the sockets that an offer announces.
///
/// # Errors
/// Fails when the other end is gone, or passes something else.
pub fn receive(stream: &UnixStream, wanted: &[(Purpose, SocketAddr)]) -> io::Result<Vec<Socket>> {
    let mut fds: Vec<OwnedFd> = Vec::new();
    while fds.len() < wanted.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let before = fds.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        if received.bytes == 0 || fds.len() == before {
            return Err(wrong(format!(
                "expected {} sockets, found {}",
                wanted.len(),
                fds.len()
            )));
        }
    }
    Ok(wanted
        .iter()
        .zip(fds)
        .map(|(&(purpose, configured), fd)| Socket {
            purpose,
            configured,
            listener: TcpListener::from(fd),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::{Cause, Trip, Wall};

    #[test]
    fn sockets_keep_their_purpose_and_messages_around_them_stay_whole() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let configured: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let sockets: Vec<Socket> = (0..70)
            .map(|_| Socket {
                purpose: Purpose::Admin,
                configured,
                listener: listener.try_clone().expect("a copy"),
            })
            .collect();
        let wanted: Vec<_> = sockets
            .iter()
            .map(|socket| (socket.purpose, socket.configured))
            .collect();
        say(
            &here,
            &Message::Offer(Offer {
                clock_us: 7,
                sockets: wanted.clone(),
                handover: Vec::new(),
            }),
        )
        .expect("said");
        pass(&here, &sockets).expect("passed");
        say(&here, &Message::Ready).expect("said");
        drop((here, sockets, listener));
        let Ok(Message::Offer(offer)) = hear(&there) else {
            panic!("no offer")
        };
        let received = receive(&there, &offer.sockets).expect("sockets");
        assert_eq!(
            (offer.clock_us, received.len()),
            (7, 70),
            "more than one message holds"
        );
        assert!(
            received
                .iter()
                .all(|socket| socket.listener.local_addr().ok() == Some(address)
                    && socket.purpose == Purpose::Admin)
        );
        assert!(matches!(hear(&there), Ok(Message::Ready)));
        assert_eq!(
            hear(&there).expect_err("the other end is gone").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_handover_survives_serialisation_unchanged() {
        let part = PartHandover {
            evidence: vec![1.0, 0.1 + 0.2, -3.75],
            alone: Some((0.001, vec![2.5])),
        };
        let judge = JudgeHandover {
            rules: vec![("ErrorsMax(Rate(1))".to_owned(), vec![part])],
            compares_from: Some(Mono::from_micros(9)),
            warm_until: Some(Mono::from_micros(12)),
            ever: vec![("Hang(1)".to_owned(), vec![(Mono::from_micros(3), 0.25)])],
            alone: true,
        };
        let percent = |text: &str| Percent::parse(text).expect("a percentage");
        let handover = Handover {
            judge,
            share: percent("12.5"),
            raised_at: Some(Mono::from_micros(5)),
            frozen: Some((percent("5"), Mono::from_micros(8), "both".to_owned())),
        };
        let handover: Handovers = [(Arc::from("checkout"), handover)].into();
        let text = serde_json::to_string(&estate_of(&handover)).expect("text");
        assert_eq!(
            restore_handover(serde_json::from_str(&text).expect("known")).expect("a handover"),
            handover
        );
    }

    #[test]
    fn a_rollback_and_a_lead_survive_serialisation_unchanged() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let percent = Percent::parse("12.5").expect("a percentage");
        let maintenance = Restriction {
            mode: Maintenance::Hold,
            until: Some(Mono::from_micros(77)),
        };
        let lead = Lead {
            rollouts: vec![LedRollout {
                id: "a".into(),
                percent,
                latched: true,
                maintenance,
            }],
            maintenance: Restriction::default(),
        };
        say(&here, &Message::of_lead(&lead, 3)).expect("said");
        let Ok(Message::Lead {
            acknowledged: 3,
            rollouts,
            maintenance,
        }) = hear(&there)
        else {
            panic!("no lead")
        };
        assert_eq!(restore_lead(rollouts, &maintenance).expect("a lead"), lead);

        let trip = Trip {
            at: Wall::from_millis(1_795_169_730_250),
            cause: Cause::State,
            from: percent,
            sentence: "why".to_owned(),
            history: Vec::new(),
        };
        let tripped = Tripped {
            rollout: "a".to_owned(),
            trip: trip.clone(),
            actor: Actor::guard(),
            reason: "a rule".to_owned(),
        };
        say(&here, &Message::of_trip(&tripped)).expect("said");
        let Ok(Message::Tripped {
            rollout,
            trip: told,
            actor,
            source,
            reason,
        }) = hear(&there)
        else {
            panic!("no rollback")
        };
        let read = restore_trip(rollout, *told, actor, &source, reason).expect("a rollback");
        assert_eq!((read.trip, read.actor), (trip, Actor::guard()));
    }
}
