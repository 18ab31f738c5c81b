//! The memory server of DMCE: holds blocks.
//!
//! ```text
//!  broker <--- link.rs ---> server.rs ---> turns.rs    one request of a block at a time
//!  clients <--- links.rs <------+                      bytes by message
//!                 rates.rs                            how many each user may send
//!                               |
//!                               +--------> store/      the blocks and their objects
//!                               |
//!                               +--------> workers.rs  what takes long
//! ```
//!
//! # Invariants
//!
//! 1. A block whose creation was answered is there until its destruction is asked for, whatever
//!    becomes of this process.
//! 2. What clients can write is touched by `pread`, `pwrite` and `madvise` alone; single words, and
//!    what goes from one copy to another, by routines that a SIGBUS ends with an error: none of
//!    them can crash a daemon.
//! 3. What the broker sends can end the connection, and no more.
#![forbid(unsafe_code)]

mod args;
mod link;
mod links;
mod rates;
mod server;
mod store;
mod turns;
mod workers;

use std::error::Error;
use std::process::ExitCode;
use std::{env, io};

use clap::Parser;
use dmce_sys::poll::SignalFd;
use dmce_sys::{fault, limits};
use sd_notify::NotifyState;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::EnvFilter;

use args::Args;
use server::Server;

/// The socket on which the broker listens for daemons, in the folder of the instance.
const SOCKET: &str = "daemon.sock";

const LOG_VARIABLE: &str = "DMCE_LOG";

fn main() -> ExitCode {
    let args = Args::parse();
    // A thread that panics must not leave the rest waiting for it: another process of this daemon
    // adopts the blocks.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
    match start_log().map_err(Into::into).and_then(|()| serve(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dmce-daemon: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    let (settings, dir) = args.resolve()?;
    let signals = SignalFd::new()?;
    fault::install()?;
    if let Err(error) = limits::raise_open_files() {
        warn!(%error, "the limit of open files stays as it is");
    }
    let server = Server::start(settings, &dir.join(SOCKET), signals)?;
    notify(NotifyState::Ready);
    server.run()?;
    notify(NotifyState::Stopping);
    Ok(())
}

/// Tells the service manager, if one wants to know.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager was not told");
    }
}

/// `DMCE_LOG` says how much is logged: `debug`, or as `tracing-subscriber` reads it.
fn start_log() -> Result<(), String> {
    let text = env::var_os(LOG_VARIABLE).unwrap_or_default();
    let wrong = |what: &str| format!("{LOG_VARIABLE} is {:?}: {what}", text.to_string_lossy());
    let directives = text.to_str().ok_or_else(|| wrong("no UTF-8 text"))?;
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let filter = filter.parse(directives).map_err(|error| wrong(&error.to_string()))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

/// An error and its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
