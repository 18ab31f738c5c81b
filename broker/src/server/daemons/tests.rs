use std::path::PathBuf;

use dmce_abi::block::BlockId;
use dmce_abi::wire::daemon::PoolPlace;
use dmce_sys::process;

use super::*;

/// A daemon that is connected, in a folder of its own that is removed whatever happens.
struct Connected {
    path: PathBuf,
    poller: Poller,
    daemons: Daemons,
    conn: DaemonConn,
    daemon: Socket,
}

impl Connected {
    fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dmce-test-{label}-{}", process::own_pid()));
        std::fs::create_dir(&path).unwrap();
        let poller = Poller::new().unwrap();
        let mut daemons = Daemons::listen(&poller, &path).unwrap();
        let daemon = Socket::connect(path.join("daemon.sock")).unwrap();
        let mut events = VecDeque::new();
        daemons.accept(&poller, &mut events);
        let Some(Event::DaemonConnected { conn, .. }) = events.pop_front() else {
            panic!("nobody has connected")
        };
        Self { path, poller, daemons, conn, daemon }
    }

    fn send(&mut self, request: &DaemonRequest) -> bool {
        self.daemons.send(&self.poller, self.conn, RequestId(0), request)
    }

    /// What the daemon has got by now.
    fn received(&self) -> Vec<DaemonRequest> {
        let (mut buffer, mut fds, mut all) = (vec![0; FRAME_BYTES_MAX], Vec::new(), Vec::new());
        while let Ok(received) = self.daemon.try_recv(&mut buffer, &mut fds) {
            all.push(wire::decode_body(&buffer[..received.bytes]).unwrap());
        }
        all
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn taken(number: u32) -> DaemonRequest {
    let block = BlockId::try_from(number).unwrap();
    DaemonRequest::Taken { place: PoolPlace(number), block, committed: 4096 }
}

#[test]
fn what_may_wait_goes_before_the_next_and_in_order() {
    let mut connected = Connected::new("order");
    assert!(connected.send(&taken(1)) && connected.send(&taken(2)));
    assert_eq!(connected.received(), []);
    assert!(connected.daemons.due_at().is_some());
    let block = BlockId::try_from(1).unwrap();
    assert!(connected.send(&DaemonRequest::Destroy { block }));
    assert_eq!(connected.received(), [taken(1), taken(2), DaemonRequest::Destroy { block }]);
    assert_eq!(connected.daemons.due_at(), None);
}

#[test]
fn what_may_wait_goes_alone_when_its_time_is_over() {
    let mut connected = Connected::new("due");
    assert!(connected.send(&taken(1)));
    let due = connected.daemons.due_at().unwrap();
    assert!(connected.send(&taken(2)));
    assert_eq!(connected.daemons.due_at(), Some(due), "the first one's time is that of all");
    let mut events = VecDeque::new();
    connected.daemons.tend(&connected.poller, Millis(due.0 - 1), &mut events);
    assert_eq!(connected.received(), []);
    connected.daemons.tend(&connected.poller, due, &mut events);
    assert_eq!(connected.received(), [taken(1), taken(2)]);
    assert_eq!((connected.daemons.due_at(), events.len()), (None, 0));
}

#[test]
fn a_daemon_that_is_gone_is_found_when_the_time_of_what_waits_is_over() {
    let mut connected = Connected::new("gone");
    assert!(connected.send(&taken(1)));
    let due = connected.daemons.due_at().unwrap();
    connected.daemon.shutdown();
    let mut events = VecDeque::new();
    connected.daemons.tend(&connected.poller, due, &mut events);
    assert!(
        matches!(events.pop_front(), Some(Event::DaemonHungUp { conn }) if conn == connected.conn)
    );
    assert!(!connected.daemons.is_open(connected.conn));
}
