//! Session records and lock tables: what a broker that comes back, or a client that opens a table,
//! finds in objects.
//!
//! ```text
//! 0       1
//! | kind  | the object's bytes; those behind the preamble, if it is to be sealed
//! ```

use std::os::fd::AsFd;

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::limits::{GRANTS, SESSION_NAME_BYTES_MAX};
use dmce_shm::record::{self, ProcessIdentity, RECORD_BYTES, RecordError, Rights, SessionRecord};
use dmce_shm::session::SessionIdentity;
use dmce_shm::table::{LockTableHeader, TableIdentity};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::objects::{bytes_of, holding, lay_over, seal};

const PAGE: usize = 4096;
const GRANTS_OFFSET: usize = 576;

const _: () = assert!(PAGE as u64 == RECORD_BYTES);

/// The bytes are the object as it is found.
const RAW: u8 = 1 << 0;
/// They begin with the grants.
const FROM_GRANTS: u8 = 1 << 1;
/// They are the first page of a lock table.
const TABLE: u8 = 1 << 2;

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind & TABLE != 0 {
        return lock_table(rest);
    }
    let page = if kind & RAW == 0 { forged(*kind, rest) } else { rest.to_vec() };
    let fd = holding(&page);
    match record::read(fd.as_fd()) {
        Ok(record) => accepted(&page, &record),
        Err(RecordError::NeverReady) => assert!(page.get(16..20).is_none_or(|r| r == [0; 4])),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

/// A record whose checksum is right, whatever it says.
fn forged(kind: u8, rest: &[u8]) -> Vec<u8> {
    let fd = holding(&[]);
    record::create(fd.as_fd(), &plain()).expect("a plain record can be written");
    let mut page: [u8; PAGE] = bytes_of(&fd);
    lay_over(&mut page, if kind & FROM_GRANTS == 0 { 24 } else { GRANTS_OFFSET }, rest);
    seal(&mut page, GRANTS_OFFSET);
    page.to_vec()
}

fn plain() -> SessionRecord {
    let session = SessionId::try_from(7).expect("a small id");
    SessionRecord {
        identity: SessionIdentity { session, guid: Guid([9; 16]) },
        process: ProcessIdentity { pid: 1, lived_at: 2, boot_id: [3; 16] },
        uid: 1000,
        gid: 1000,
        reserved: 0,
        created_at: 1,
        pointer_bits: 32,
        copies: 1,
        name: "hold".to_owned(),
    }
}

/// What is believed can be written again and reads the same; its grants are its words.
fn accepted(page: &[u8], record: &SessionRecord) {
    let fd = holding(&[]);
    match record::create(fd.as_fd(), record) {
        Ok(()) => assert_eq!(record::read(fd.as_fd()).ok().as_ref(), Some(record)),
        // The field has room for one byte more than a name may have.
        Err(error) => {
            assert!(matches!(error, RecordError::NameTooLong { .. }));
            assert_eq!(record.name.len(), SESSION_NAME_BYTES_MAX + 1);
        }
    }
    grants(page);
}

fn grants(page: &[u8]) {
    let fd = holding(page);
    let Ok(grants) = record::grants(fd.as_fd()) else { return };
    assert!(grants.len() <= GRANTS && grants.is_sorted_by(|(a, _), (b, _)| a < b));
    for (index, grant) in &grants {
        assert!(grant.rights.can_read() || grant.rights.can_write());
        assert_eq!(
            Rights::of(grant.rights.can_read(), grant.rights.can_write()),
            Some(grant.rights)
        );
        // Stored again it is the same word.
        let before: [u8; PAGE] = bytes_of(&fd);
        record::grant(fd.as_fd(), *index, *grant).expect("the place was there");
        assert!(before == bytes_of(&fd), "grant {index}");
    }
    for (index, _) in &grants {
        record::revoke(fd.as_fd(), *index).expect("the place was there");
    }
    assert_eq!(record::grants(fd.as_fd()).ok(), Some(Vec::new()));
    assert!(record::read(fd.as_fd()).is_ok(), "grants are not what a record stands on");
}

/// A table is taken for that of a block only if every field of its first page says so.
fn lock_table(bytes: &[u8]) {
    let block = BlockId::try_from(9).expect("a small id");
    let identity = TableIdentity { block, guid: Guid([3; 16]), epoch: 2 };
    let right = LockTableHeader::new(identity);
    let mut found = LockTableHeader::new_zeroed();
    found.as_mut_bytes().copy_from_slice(right.as_bytes());
    // A difference for each byte: most of a page that is right can be left out.
    for (place, difference) in found.as_mut_bytes().iter_mut().zip(bytes) {
        *place ^= difference;
    }
    let found = LockTableHeader::read_from_bytes(found.as_bytes()).expect("it is as long");
    let fields = [0..20, 24..48];
    let same = fields
        .iter()
        .all(|field| found.as_bytes()[field.clone()] == right.as_bytes()[field.clone()]);
    assert_eq!(found.check(identity).is_ok(), same);
}
