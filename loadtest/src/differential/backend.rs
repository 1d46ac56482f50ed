//! The backends behind one engine. They follow the script of each request and record what arrives.
//!
//! Every group of listeners belongs to one conversation at a time, so the effects of one case on a
//! kept connection are invisible to all other cases. If it matters to a case which connections an
//! engine has kept ([`Case::is_calm`]), all connections of its group are closed before and after
//! the case. Such a case finds the pools of both engines empty. Other cases use the connections
//! that earlier cases left. Requests whose target and host are both so odd that no rollout matches
//! them arrive at a backend that all groups share. Their scripts must not do anything to a
//! connection that its next user would notice. The author of a script is responsible for that.
//!
//! Scripts are looked up by the code that the request carries. A request without a code is
//! attributed to the case that the group is playing. It is answered and it is counted.

use crate::differential::case::{After, CODE, Case, Script, decode};
use crate::differential::threads::{Threads, look_around};
use crate::differential::wire::{Body, Ending, Framing, Head, HeadRead, Reader};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// The answer to a request without a code.
const STRAY: &[u8] = b"HTTP/1.1 200 OK\r\nx-case: stray\r\ncontent-length: 0\r\n\r\n";
/// How long to wait after a conversation for what the backend is still reading.
const SETTLE: Duration = Duration::from_secs(3);
/// The delay between the last byte and the reset of a connection.
const RESET: Duration = Duration::from_millis(3);
/// How long an engine that has answered in place of the backend may still send something to the
/// backend.
const AFTERWARDS: Duration = Duration::from_millis(2);
/// How often a thread polls the network until everything that arrived has reached its reader. A
/// connection is first accepted and then read.
const LOOKS: usize = 4;

/// The record of one arrival of a request at a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The index of the request in the case. `None` if the request carried no code.
    pub request: Option<usize>,
    /// The head of the request.
    pub head: Head,
    /// The framing of the request body.
    pub framing: Framing,
    /// The body of the request.
    pub body: Body,
}

/// A case that is being played through one engine.
#[derive(Debug)]
pub struct Play {
    case: Arc<Case>,
    arrivals: Mutex<Vec<Arrival>>,
    busy: AtomicUsize,
    settled: Notify,
}

/// The backends behind one engine.
#[derive(Debug)]
pub struct Backends {
    groups: Vec<Group>,
    commons: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Group {
    legacy: SocketAddr,
    new: SocketAddr,
    current: Arc<Mutex<Option<Arc<Play>>>>,
    /// A counter that is raised to close all connections.
    epoch: watch::Sender<u64>,
    open: Arc<Open>,
}

/// The number of open connections of a group.
#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    none: Notify,
}

#[derive(Debug, Default)]
struct Shared {
    plays: Mutex<HashMap<u64, Arc<Play>>>,
}

/// The listener that accepted a connection.
#[derive(Clone, Debug)]
struct Place {
    shared: Arc<Shared>,
    /// The case that the group is playing. `None` for the shared backend.
    current: Option<Arc<Mutex<Option<Arc<Play>>>>>,
}

/// Locks a mutex even if it is poisoned. Every holder performs a single operation, so none can have
/// left anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backends {
    /// Starts the given number of groups, each on its own thread.
    ///
    /// # Errors
    /// Fails if no ports are available.
    pub async fn start(groups: usize, threads: &Threads) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (never, _) = watch::channel(0);
        let listen = |group: usize, place: Place, epoch: watch::Sender<u64>, open: Arc<Open>| {
            let listening = threads.spawn(group, listen(place, epoch, open));
            async move { listening.await.map_err(io::Error::other)? }
        };
        let commons = listen(
            0,
            Place {
                shared: Arc::clone(&shared),
                current: None,
            },
            never,
            Arc::default(),
        )
        .await?;
        let mut all = Vec::new();
        for group in 0..groups {
            let current = Arc::new(Mutex::new(None));
            let (epoch, _) = watch::channel(0);
            let place = Place {
                shared: Arc::clone(&shared),
                current: Some(Arc::clone(&current)),
            };
            let open = Arc::new(Open::default());
            let legacy = listen(group, place.clone(), epoch.clone(), Arc::clone(&open)).await?;
            let new = listen(group, place, epoch.clone(), Arc::clone(&open)).await?;
            all.push(Group {
                legacy,
                new,
                current,
                epoch,
                open,
            });
        }
        Ok(Self {
            groups: all,
            commons,
            shared,
        })
    }

    /// Returns the address of the backend that all groups share.
    pub fn commons(&self) -> SocketAddr {
        self.commons
    }

    /// Returns the addresses of legacy and new for each group.
    pub fn groups(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.groups.iter().map(|group| (group.legacy, group.new))
    }

    /// Begins a case in a group.
    pub async fn begin(&self, group: usize, case: &Arc<Case>) -> Arc<Play> {
        let play = Arc::new(Play {
            case: Arc::clone(case),
            arrivals: Mutex::default(),
            busy: AtomicUsize::new(0),
            settled: Notify::new(),
        });
        lock(&self.shared.plays).insert(case.number, Arc::clone(&play));
        if let Some(group) = self.groups.get(group) {
            if !case.is_calm() {
                group.close_all().await;
            }
            *lock(&group.current) = Some(Arc::clone(&play));
        }
        play
    }

    /// Ends a case: waits for what the backend is still reading, and returns what arrived. If the
    /// engine answered in place of the backend, bytes may be in flight that no answer has waited
    /// for. This function has to run on the thread of the group.
    pub async fn end(&self, group: usize, play: &Play, is_under_way: bool) -> Vec<Arrival> {
        if let Some(group) = self.groups.get(group) {
            if is_under_way {
                tokio::time::sleep(AFTERWARDS).await;
                look_around(LOOKS).await;
            }
            // A body that is unfinished by then is recorded as silent.
            let _ = tokio::time::timeout(SETTLE, zero(&play.busy, &play.settled)).await;
            if !play.case.is_calm() {
                group.close_all().await;
            }
            *lock(&group.current) = None;
        }
        lock(&self.shared.plays).remove(&play.case.number);
        std::mem::take(&mut *lock(&play.arrivals))
    }
}

impl Group {
    /// Closes every connection to these backends.
    async fn close_all(&self) {
        if self.open.count.load(Ordering::SeqCst) > 0 {
            self.epoch.send_modify(|epoch| *epoch += 1);
            let _ = tokio::time::timeout(SETTLE, zero(&self.open.count, &self.open.none)).await;
        }
    }
}

/// Returns once the number is 0.
async fn zero(number: &AtomicUsize, changed: &Notify) {
    loop {
        let told = changed.notified();
        tokio::pin!(told);
        // From here on no notification is missed.
        told.as_mut().enable();
        if number.load(Ordering::SeqCst) == 0 {
            return;
        }
        told.await;
    }
}

/// A request that is being read or answered. The exchange ends when this value is dropped, for any
/// reason.
struct Exchange {
    play: Option<Arc<Play>>,
    arrival: usize,
}

impl Exchange {
    fn begin(play: Option<Arc<Play>>, arrival: Arrival) -> Self {
        let mut at = 0;
        if let Some(play) = &play {
            play.busy.fetch_add(1, Ordering::SeqCst);
            let mut arrivals = lock(&play.arrivals);
            at = arrivals.len();
            arrivals.push(arrival);
        }
        Self { play, arrival: at }
    }

    fn has_read(&self, body: Body) {
        if let Some(play) = &self.play
            && let Some(arrival) = lock(&play.arrivals).get_mut(self.arrival)
        {
            arrival.body = body;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(play) = &self.play
            && play.busy.fetch_sub(1, Ordering::SeqCst) == 1
        {
            play.settled.notify_waiters();
        }
    }
}

/// A guard that counts its connection as open until it is dropped.
struct Counted(Arc<Open>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

async fn listen(
    place: Place,
    epoch: watch::Sender<u64>,
    open: Arc<Open>,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            // The process is briefly out of file descriptors. The engine sees a connection that
            // waits.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let (place, mut epoch) = (place.clone(), epoch.subscribe());
            open.count.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(Arc::clone(&open));
            tokio::spawn(async move {
                let _counted = counted;
                tokio::select! {
                    // Data that has arrived is read before the end is checked.
                    biased;
                    () = serve(stream, &place) => {}
                    _ = epoch.changed() => {}
                }
            });
        }
    });
    Ok(address)
}

async fn serve(stream: TcpStream, place: &Place) {
    // Without this option an answer in pieces waits for acknowledgements.
    let _ = stream.set_nodelay(true);
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    let mut is_kept = false;
    loop {
        let head = match reader.head().await {
            HeadRead::Whole(head) => head,
            HeadRead::Ended(0) => return,
            HeadRead::Ended(_) | HeadRead::TooLong => {
                // An engine must never send half a head. It is recorded as an arrival without a
                // request.
                let head = Head {
                    start: reader.rest().to_vec(),
                    fields: Vec::new(),
                };
                Exchange::begin(
                    place.playing(),
                    Arrival {
                        request: None,
                        head,
                        framing: Framing::None,
                        body: Body::default(),
                    },
                );
                return;
            }
        };
        match answer(&mut reader, &mut write, place, head, is_kept).await {
            After::Keep => is_kept = true,
            After::Close => return,
            After::Reset => {
                // The reset follows the answer at a distance. If it came sooner, chance would
                // decide how much of the answer is lost.
                tokio::time::sleep(RESET).await;
                if let Ok(stream) = reader.into_inner().reunite(write) {
                    let _ = stream.set_zero_linger();
                }
                return;
            }
            After::Hang => {
                reader.to_end().await;
                return;
            }
        }
    }
}

impl Place {
    fn playing(&self) -> Option<Arc<Play>> {
        self.current
            .as_ref()
            .and_then(|current| lock(current).clone())
    }

    /// Returns the play and the index of the request that this head belongs to.
    fn find(&self, head: &Head) -> (Option<Arc<Play>>, Option<usize>) {
        let codes: Vec<&[u8]> = head.values(CODE).collect();
        let Some((case, request)) = codes.first().and_then(|code| decode(code)) else {
            return (self.playing(), None);
        };
        let play = lock(&self.shared.plays).get(&case).cloned();
        (play, Some(request))
    }
}

async fn answer(
    reader: &mut Reader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    place: &Place,
    head: Head,
    is_kept: bool,
) -> After {
    let (play, request) = place.find(&head);
    let case = play.as_ref().map(|play| Arc::clone(&play.case));
    let script = case
        .as_ref()
        .zip(request)
        .and_then(|(case, request)| case.requests.get(request))
        .map(|request| &request.script);
    let framing = head.request_framing();
    let exchange = Exchange::begin(
        play,
        Arrival {
            request,
            head,
            framing,
            body: Body::default(),
        },
    );
    let Some(script) = script else {
        let ending = read_body(reader, framing, &exchange).await;
        let is_said = write.write_all(STRAY).await.is_ok();
        return if is_said && ending == Ending::Whole {
            After::Keep
        } else {
            After::Close
        };
    };
    if script.closes_kept && is_kept && place.current.is_some() {
        read_body(reader, framing, &exchange).await;
        return After::Close;
    }
    let mut is_said = script.before.is_empty() || write.write_all(&script.before).await.is_ok();
    let ending = if script.is_early {
        is_said = is_said && say(write, script).await;
        read_body(reader, framing, &exchange).await
    } else {
        let ending = read_body(reader, framing, &exchange).await;
        // A careful backend does not answer half a request.
        is_said = is_said && ending == Ending::Whole && say(write, script).await;
        ending
    };
    match script.after {
        _ if !is_said || ending != Ending::Whole => After::Close,
        after => after,
    }
}

async fn read_body(
    reader: &mut Reader<OwnedReadHalf>,
    framing: Framing,
    exchange: &Exchange,
) -> Ending {
    let mut reading = Reading {
        exchange,
        body: Body::default(),
    };
    reader.body(framing, &mut reading.body).await;
    reading.body.ending
}

/// A body that is recorded as far as it arrived, even if no task waits for the rest.
struct Reading<'a> {
    exchange: &'a Exchange,
    body: Body,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.exchange.has_read(std::mem::take(&mut self.body));
    }
}

async fn say(write: &mut OwnedWriteHalf, script: &Script) -> bool {
    for piece in script.writes.pieces(&script.answer) {
        if write.write_all(piece).await.is_err() {
            return false;
        }
        script.writes.pause.rest().await;
    }
    true
}
