//! Daemons that go with all that they hold, while clients write.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use dmce_tests::Instance;

use crate::{Error, Result};

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);

/// A daemon goes, and its memory with it.
///
/// # Errors
///
/// [`Error::System`].
pub fn lose(instance: &mut Instance, daemon: u32) -> Result<()> {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    for name in instance.objects().into_iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(&name);
        // One that the daemon has removed meanwhile is lost as well.
        match File::options().write(true).open(&path) {
            Ok(file) => file.set_len(0).map_err(Error::system(name.clone()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::system(name)(error)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::system(name)(error));
            }
            _ => {}
        }
    }
    instance.kill_daemon(daemon);
    Ok(())
}

/// Waits until each client has written so often from now on.
///
/// # Errors
///
/// Those of a client; [`Error::System`] if it does not happen.
pub fn wait_written<C>(
    clients: &mut [C],
    writes: u64,
    written: impl Fn(&mut C) -> Result<u64>,
) -> Result<()> {
    let begun = clients.iter_mut().map(&written).collect::<Result<Vec<u64>>>()?;
    for (client, begun) in clients.iter_mut().zip(begun) {
        wait("a client that writes", || Ok(written(client)? >= begun + writes))?;
    }
    Ok(())
}

/// Waits for something.
///
/// # Errors
///
/// Those of the question; [`Error::System`] if it does not happen.
pub fn wait(what: &str, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_there()? {
        if begin.elapsed() > PATIENCE {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(Error::system(format!("waiting for {what}"))(late));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
