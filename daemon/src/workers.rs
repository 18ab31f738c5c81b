//! The threads that carry out what would hold up the loop.
//!
//! ```text
//!            jobs, oldest first      +-----------+
//!  loop ---------------------------> | commit-1  | ---+
//!    ^                           +-> | commit-2  | ---+  finished, and the eventfd
//!    |                               +-----------+    |  makes the loop look
//!    |       tasks, newest first     +-----------+    |
//!    |  ---------------------------> | prepare   | ---+
//!    |                               +-----------+    |
//!    +------------------------------------------------+
//! ```
//!
//! # Invariants
//!
//! 1. Every job and every task that was handed over comes back as [`Finished`], once.
//! 2. One more thread may help to make a large new object (`store/lay.rs`); it has ended when the
//!    job or the task has.
//! 3. The thread that prepares pages looks for newer work after each step. No thread here has a
//!    lower priority than another (`store/prepare.rs` says why).
//! 4. The threads end with the process. A death in the middle of a job is what adoption is for.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use dmce_sys::poll::EventFd;
use tracing::warn;

use crate::store::{Done, Folder, Job, Preparation, Preparer, Task, TaskDone};

/// Threads that commit.
const COMMITTERS: u32 = 2;

/// Blocks whose pages wait to be prepared. Beyond it the oldest is left to its users.
const PREPARATIONS_MAX: usize = 1024;

/// What a worker has done.
#[derive(Debug)]
pub enum Finished {
    /// A job.
    Job(Done),
    /// A task.
    Task(TaskDone),
}

/// Why there are no workers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No thread, no descriptor.
    #[error("the workers cannot be started")]
    Io(#[from] io::Error),
}

/// The threads.
#[derive(Debug)]
pub struct Workers {
    jobs: Arc<Queue<Assignment>>,
    tasks: Arc<Queue<Task>>,
    finished: Receiver<Finished>,
    wake: Arc<EventFd>,
}

#[derive(Debug)]
struct Assignment {
    job: Job,
    cancelled: Arc<AtomicBool>,
}

/// How a worker reports.
#[derive(Clone, Debug)]
struct Reporter {
    finished: Sender<Finished>,
    wake: Arc<EventFd>,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start(folder: &Arc<Folder>, preparer: Preparer) -> Result<Self, StartError> {
        let (sender, finished) = channel();
        let wake = Arc::new(EventFd::new()?);
        let reporter = Reporter { finished: sender, wake: Arc::clone(&wake) };
        let jobs = Arc::new(Queue::default());
        for number in 1..=COMMITTERS {
            let (jobs, folder) = (Arc::clone(&jobs), Arc::clone(folder));
            let reporter = reporter.clone();
            let thread = thread::Builder::new().name(format!("commit-{number}"));
            thread.spawn(move || commit(&jobs, &folder, &reporter))?;
        }
        let tasks = Arc::new(Queue::default());
        let (queue, folder) = (Arc::clone(&tasks), Arc::clone(folder));
        let thread = thread::Builder::new().name("prepare".to_owned());
        thread.spawn(move || prepare(&queue, &folder, &preparer, &reporter))?;
        Ok(Self { jobs, tasks, finished, wake })
    }

    /// Hands a job over. It ends early if `cancelled` is set.
    pub fn submit(&self, job: Job, cancelled: Arc<AtomicBool>) {
        self.jobs.put([Assignment { job, cancelled }]);
    }

    /// Hands tasks over, if there are any.
    pub fn prepare(&self, tasks: Vec<Task>) {
        if !tasks.is_empty() {
            self.tasks.put(tasks);
        }
    }

    /// Readable when something is finished.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// What is finished since the last call.
    ///
    /// # Errors
    ///
    /// An error of the kernel about the eventfd.
    pub fn finished(&self) -> io::Result<Vec<Finished>> {
        // Drained first: what is finished after this makes it readable again.
        self.wake.drain()?;
        Ok(self.finished.try_iter().collect())
    }
}

impl Reporter {
    fn report(&self, finished: Finished) {
        // The loop ends with the process, and nobody needs the report then.
        if self.finished.send(finished).is_ok()
            && let Err(error) = self.wake.signal()
        {
            warn!(%error, "a worker could not wake the loop");
        }
    }
}

/// Carries out jobs, the oldest first.
fn commit(jobs: &Queue<Assignment>, folder: &Folder, reporter: &Reporter) {
    loop {
        let Assignment { job, cancelled } = jobs.take();
        reporter.report(Finished::Job(job.run(folder, &cancelled)));
    }
}

/// Carries out tasks, a step of the newest at a time.
fn prepare(queue: &Queue<Task>, folder: &Folder, preparer: &Preparer, reporter: &Reporter) {
    let mut stack = Vec::new();
    loop {
        if stack.is_empty() {
            stack.push(queue.take());
        }
        stack.extend(queue.take_all());
        for left in trim(&mut stack) {
            reporter.report(Finished::Task(left.end()));
        }
        match stack.pop() {
            Some(Task::Refill { bytes, promise }) => {
                let result = preparer.refill(folder, bytes);
                reporter.report(Finished::Task(TaskDone::Refilled { result, promise }));
            }
            Some(Task::Prepare(mut preparation)) => {
                if preparer.step(&mut preparation) {
                    stack.push(Task::Prepare(preparation));
                } else {
                    reporter.report(Finished::Task(preparation.end()));
                }
            }
            None => {}
        }
    }
}

/// Takes the oldest preparations out of a stack that has become too high.
fn trim(stack: &mut Vec<Task>) -> Vec<Preparation> {
    let mut surplus = stack.len().saturating_sub(PREPARATIONS_MAX);
    let is_surplus = |task: &mut Task| {
        let goes = surplus > 0 && matches!(task, Task::Prepare(_));
        surplus -= usize::from(goes);
        goes
    };
    let left = stack.extract_if(.., is_surplus);
    left.filter_map(|task| match task {
        Task::Prepare(preparation) => Some(preparation),
        Task::Refill { .. } => None,
    })
    .collect()
}

/// Things that one thread puts in and others take out.
#[derive(Debug)]
struct Queue<T> {
    things: Mutex<VecDeque<T>>,
    filled: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { things: Mutex::default(), filled: Condvar::new() }
    }
}

impl<T> Queue<T> {
    fn put(&self, things: impl IntoIterator<Item = T>) {
        self.lock().extend(things);
        self.filled.notify_all();
    }

    /// The first, when there is one.
    fn take(&self) -> T {
        let mut things = self.lock();
        loop {
            match things.pop_front() {
                Some(thing) => return thing,
                None => {
                    things = self.filled.wait(things).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// All that there are, without waiting.
    fn take_all(&self) -> VecDeque<T> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        // A panic ends the process (main.rs), so nobody sees what it left.
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::time::Duration;

    use dmce_abi::block::{BlockId, DaemonId};
    use dmce_abi::name::Instance;
    use dmce_sys::poll;

    use super::*;
    use crate::store::{Data, Growth, Remains};

    fn id(block: u32) -> BlockId {
        BlockId::try_from(block).unwrap()
    }

    fn preparation(block: u32) -> Preparation {
        Preparation {
            block: id(block),
            data: File::open("/dev/null").unwrap().into(),
            rest: Growth { from: 0, to: 4096 },
            gone: Arc::default(),
            promise: None,
        }
    }

    fn blocks(left: &[Preparation]) -> Vec<u32> {
        left.iter().map(|preparation| preparation.block.get()).collect()
    }

    #[test]
    fn of_too_many_preparations_the_oldest_are_given_up() {
        let mut stack: Vec<_> = (1..=1027).map(|block| Task::Prepare(preparation(block))).collect();
        assert_eq!(blocks(&trim(&mut stack)), [1, 2, 3]);
        assert_eq!(stack.len(), PREPARATIONS_MAX);
        assert_eq!(blocks(&trim(&mut stack)), []);
    }

    #[test]
    fn whatever_is_handed_over_comes_back_once() {
        let instance = Instance::new(&format!("test-workers-{}", std::process::id())).unwrap();
        let folder =
            Folder::open(Path::new("/dev/shm"), instance, DaemonId::try_from(1).unwrap()).unwrap();
        let preparer = Preparer::new(true).unwrap();
        let workers = Workers::start(&Arc::new(folder), preparer).unwrap();
        for block in 1..=50 {
            let remains = Remains { block: id(block), data: Data { inode: 0, bytes: 0 } };
            workers.submit(Job::Clear { remains }, Arc::default());
        }
        workers.prepare((51..=100).map(|block| Task::Prepare(preparation(block))).collect());
        let mut back = BTreeSet::new();
        while back.len() < 100 {
            let watchdog = Some(Duration::from_secs(60));
            assert!(poll::wait_readable(workers.wake().as_fd(), watchdog).unwrap(), "{back:?}");
            for finished in workers.finished().unwrap() {
                let block = match finished {
                    Finished::Job(done) => done.block(),
                    Finished::Task(TaskDone::Prepared { block, .. }) => block,
                    Finished::Task(other) => panic!("{other:?} was not handed over"),
                };
                assert!(back.insert(block), "block {block} came back twice");
            }
        }
        assert!(workers.finished().unwrap().is_empty());
    }
}
