//! What is done to a region: by a session of the command's own, with the rights of its user.

use libdmce::{Mirror, Options, Prot, Session};

use crate::args::{Resync, Side};
use crate::broker::Broker;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The region could not be opened.
    #[error("region {volume}/{name} cannot be opened")]
    #[allow(missing_docs, reason = "the message names the fields")]
    Open { volume: String, name: String, source: libdmce::Error },
    /// Its halves still differ, somewhere.
    #[error("region {volume}/{name} is not in step")]
    #[allow(missing_docs, reason = "the message names the fields")]
    Resync { volume: String, name: String, source: libdmce::Error },
}

/// Gives all copies of a region what one half has.
///
/// # Errors
///
/// [`RegionError`].
pub fn resync(broker: &Broker, wanted: &Resync) -> Result<(), RegionError> {
    let Resync { volume, name, from } = wanted;
    let open = |source| RegionError::Open { volume: volume.clone(), name: name.clone(), source };
    let options = Options {
        socket: Some(broker.path().to_owned()),
        name: "dmce region resync".into(),
        no_thread: true,
        ..Options::default()
    };
    let session = Session::open(&options).map_err(open)?;
    let region = session.region_open(volume, name, Prot::READ_WRITE).map_err(open)?;
    let half = match from {
        Side::Primary => Mirror::Primary,
        Side::Mirror => Mirror::Mirror,
    };
    region.resync(half).map_err(|source| RegionError::Resync {
        volume: volume.clone(),
        name: name.clone(),
        source,
    })
}
