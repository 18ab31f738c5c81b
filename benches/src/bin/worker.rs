//! `dmce-bench-worker`: the other processes of a run. Its argument says which.

use std::process::ExitCode;

use dmce_benches::worker::describe;
use dmce_benches::{echo, janitor, worker};

fn main() -> ExitCode {
    let served = match std::env::args().nth(1).as_deref() {
        Some("client") => worker::serve(),
        Some("echo") => echo::serve(),
        Some("switchboard") => echo::serve_many(),
        Some("janitor") => janitor::serve(),
        _ => {
            eprintln!(
                "usage: dmce-bench-worker client|echo|switchboard|janitor (dmce-bench starts it)"
            );
            return ExitCode::from(2);
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dmce-bench-worker: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}
