use std::os::fd::AsFd;

use dmce_sys::clock;

use super::*;
use crate::testing::object;

fn record() -> SessionRecord {
    SessionRecord {
        identity: SessionIdentity { session: SessionId::try_from(7).unwrap(), guid: Guid([5; 16]) },
        process: ProcessIdentity { pid: 1234, lived_at: 99_999, boot_id: [6; 16] },
        uid: 1000,
        gid: 100,
        reserved: 5 << 30,
        created_at: 1_800_000_000,
        pointer_bits: 32,
        copies: 2,
        name: "hold \u{e9}".to_owned(),
    }
}

fn some_grant(block: u32, rights: Rights) -> Grant {
    Grant { block: BlockId::try_from(block).unwrap(), rights }
}

#[test]
fn a_record_reads_back_as_it_was_written_and_has_no_grants() {
    for name in ["", "hold", &"n".repeat(SESSION_NAME_BYTES_MAX)] {
        let fd = object();
        let record = SessionRecord { name: name.to_owned(), ..record() };
        create(fd.as_fd(), &record).unwrap();
        assert_eq!(read(fd.as_fd()).unwrap(), record);
        assert_eq!(grants(fd.as_fd()).unwrap(), []);
    }
}

#[test]
fn a_name_that_does_not_fit_is_refused() {
    let fd = object();
    let record = SessionRecord { name: "n".repeat(64), ..record() };
    let error = create(fd.as_fd(), &record).unwrap_err();
    assert_eq!(error.to_string(), "a session's name of 64 bytes is longer than 63");
}

#[test]
fn a_prepared_record_is_nobodys_until_it_is_created_and_after_it_has_ended() {
    let fd = object();
    prepare(fd.as_fd()).unwrap();
    assert_eq!(object::stat(fd.as_fd()).unwrap().bytes, RECORD_BYTES);
    assert!(matches!(read(fd.as_fd()), Err(RecordError::NeverReady)));
    create(fd.as_fd(), &record()).unwrap();
    assert_eq!(read(fd.as_fd()).unwrap(), record());
    grant(fd.as_fd(), 0, some_grant(1, Rights::Read)).unwrap();
    end(fd.as_fd()).unwrap();
    assert!(matches!(read(fd.as_fd()), Err(RecordError::NeverReady)));
    assert!(matches!(grants(fd.as_fd()), Err(RecordError::NeverReady)));
}

#[test]
fn a_death_anywhere_in_create_leaves_a_session_that_belongs_to_nobody() {
    let page = RecordPage::encode(&record()).unwrap();
    let steps = preamble::steps(0, page.as_bytes());
    for done in 0..steps.len() {
        let fd = object();
        for step in &steps[..done] {
            object::write_at(fd.as_fd(), step.bytes, step.offset).unwrap();
        }
        assert!(matches!(read(fd.as_fd()), Err(RecordError::NeverReady)), "after {done} steps");
    }
}

#[test]
fn no_changed_bit_before_the_grants_goes_unnoticed() {
    let fd = object();
    create(fd.as_fd(), &record()).unwrap();
    let mut page = [0; GRANTS_OFFSET];
    object::read_at(fd.as_fd(), &mut page, 0).unwrap();
    for bit in 0..GRANTS_OFFSET * 8 {
        let place = bit / 8;
        object::write_at(fd.as_fd(), &[page[place] ^ (1 << (bit % 8))], place as u64).unwrap();
        match read(fd.as_fd()) {
            Err(RecordError::Damaged { .. } | RecordError::OtherVersion { .. }) => {}
            other => panic!("bit {bit} gave {other:?}"),
        }
        object::write_at(fd.as_fd(), &page[place..=place], place as u64).unwrap();
    }
    assert_eq!(read(fd.as_fd()).unwrap(), record());
}

#[test]
fn grants_come_and_go_without_touching_the_checksum() {
    let fd = object();
    create(fd.as_fd(), &record()).unwrap();
    let first = some_grant(1, Rights::Read);
    let middle = some_grant(500, Rights::Write);
    let last = some_grant(BlockId::MAX, Rights::ReadWrite);
    grant(fd.as_fd(), 0, first).unwrap();
    grant(fd.as_fd(), 9, middle).unwrap();
    grant(fd.as_fd(), GRANTS - 1, last).unwrap();
    assert_eq!(grants(fd.as_fd()).unwrap(), [(0, first), (9, middle), (GRANTS - 1, last)]);

    revoke(fd.as_fd(), 9).unwrap();
    assert_eq!(grants(fd.as_fd()).unwrap(), [(0, first), (GRANTS - 1, last)]);
    assert_eq!(read(fd.as_fd()).unwrap(), record());
}

#[test]
fn a_place_that_the_record_does_not_have_is_refused() {
    let fd = object();
    create(fd.as_fd(), &record()).unwrap();
    let refused = grant(fd.as_fd(), GRANTS, some_grant(1, Rights::Read)).unwrap_err();
    assert_eq!(refused.to_string(), "grant 440 is not below 440");
    assert!(revoke(fd.as_fd(), usize::MAX).is_err());
    assert_eq!(object::stat(fd.as_fd()).unwrap().bytes, RECORD_BYTES);
}

#[test]
fn a_word_that_is_no_grant_is_damage() {
    for word in [1_u64, 4 << 32 | 1, 1 << 32, 1 << 32 | 1 << 20, u64::MAX] {
        let fd = object();
        create(fd.as_fd(), &record()).unwrap();
        store_grant(fd.as_fd(), 3, word).unwrap();
        let error = grants(fd.as_fd()).unwrap_err();
        assert!(error.to_string().starts_with("the record is damaged: grant 3:"), "{error}");
    }
}

#[test]
fn rights_are_never_nothing() {
    assert_eq!(Rights::of(false, false), None);
    for (read, write) in [(true, false), (false, true), (true, true)] {
        let rights = Rights::of(read, write).unwrap();
        assert_eq!((rights.can_read(), rights.can_write()), (read, write));
    }
}

#[test]
fn a_process_is_not_another_of_its_pid_and_not_one_of_another_boot() {
    let (pid, boot_id) = (process::own_pid(), process::boot_id().unwrap());
    let this = ProcessIdentity { pid, lived_at: clock::boot_ticks(), boot_id };
    assert!(this.is_alive().unwrap());
    // Who had the pid before lived before this one started.
    let earlier = ProcessIdentity { lived_at: process::start_time(pid).unwrap() - 1, ..this };
    assert!(!earlier.is_alive().unwrap());
    let other_boot = ProcessIdentity { boot_id: [0; 16], ..this };
    assert!(!other_boot.is_alive().unwrap());
}
