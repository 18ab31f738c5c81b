use std::os::fd::AsFd;

use super::*;
use crate::testing::object;

const LAYOUT: AddrLayout = AddrLayout::IN_SERVER;

fn daemon(id: u32) -> DaemonId {
    DaemonId::try_from(id).unwrap()
}

fn block(id: u32) -> BlockId {
    BlockId::try_from(id).unwrap()
}

fn of_session() -> BlockHeader {
    let guid = Guid([7; 16]);
    BlockHeader {
        daemon: daemon(2),
        description: BlockDescription {
            block: block(42),
            guid,
            epoch: 1,
            page_size: 4096,
            bytes_max: 1 << 30,
            span: Span { first: block(41), count: 3, guid: Guid([8; 16]) },
            owner: Owner::Session {
                session: SessionId::try_from(5).unwrap(),
                ticket: Ticket { session: Guid([9; 16]), number: 11 },
                uid: 1000,
                copies: 1,
            },
            membership: Membership::alone(),
        },
    }
}

fn of_region() -> BlockHeader {
    let mut header = of_session();
    let peers = vec![daemon(1), daemon(256)];
    let (role, half, syncing) = (Role::Copy, Half::MIRROR, Some(daemon(7)));
    header.description.membership =
        Membership { role, half, peers, syncing, since: 1 << 40, locked: true };
    header.description.epoch = u64::MAX;
    header.description.owner = Owner::Region(Region {
        volume: "v".repeat(63),
        name: "gr\u{f6}\u{df}e".to_owned(),
        uid: 1000,
        gid: 100,
        mode: 0o640,
        base_pointer: 0x10_0000_0000,
        region_size: 3 << 30,
        copies: 2,
        created_at: 1_800_000_000,
        created_by: Ticket { session: Guid([10; 16]), number: u64::MAX },
    });
    header
}

fn with_epoch(epoch: u64) -> BlockHeader {
    let mut header = of_session();
    header.description.epoch = epoch;
    header
}

fn decode(page: &HeaderPage) -> Result<BlockHeader, HeaderError> {
    slot_in_force(page)?.1.decode(LAYOUT)
}

fn apply(page: &mut HeaderPage, step: &Step<'_>) {
    let start = usize::try_from(step.offset).unwrap();
    page[start..start + step.bytes.len()].copy_from_slice(step.bytes);
}

fn apply_all(page: &mut HeaderPage, steps: &[Step<'_>]) {
    for step in steps {
        apply(page, step);
    }
}

fn create_in(page: &mut HeaderPage, header: &BlockHeader) {
    let slot = HeaderSlot::encode(header, 1).unwrap();
    apply_all(page, &preamble::steps(0, slot.as_bytes()));
}

fn update_in(page: &mut HeaderPage, header: &BlockHeader) {
    let (slot, place) = next_slot(page, header).unwrap();
    apply_all(page, &preamble::steps(place, slot.as_bytes()));
}

/// Calls `check` with the page after every prefix of `steps`: whole steps, and every byte of the
/// one step that is more than a word.
fn die_everywhere(page: &HeaderPage, steps: &[Step<'_>; 3], check: impl Fn(usize, &HeaderPage)) {
    let mut after = *page;
    for (done, step) in steps.iter().enumerate() {
        check(done, &after);
        if step.bytes.len() > 4 {
            for bytes in 1..step.bytes.len() {
                let mut torn = after;
                apply(&mut torn, &Step { offset: step.offset, bytes: &step.bytes[..bytes] });
                check(done, &torn);
            }
        }
        apply(&mut after, step);
    }
    check(steps.len(), &after);
}

#[test]
fn a_header_reads_back_as_it_was_written() {
    for header in [of_session(), of_region()] {
        let fd = object();
        create(fd.as_fd(), &header).unwrap();
        assert_eq!(read(fd.as_fd(), LAYOUT).unwrap(), header);
    }
}

#[test]
fn every_update_is_in_force_and_uses_the_other_slot() {
    let fd = object();
    create(fd.as_fd(), &with_epoch(1)).unwrap();
    for epoch in 2..6 {
        update(fd.as_fd(), &with_epoch(epoch)).unwrap();
        assert_eq!(read(fd.as_fd(), LAYOUT).unwrap(), with_epoch(epoch));
        let (place, slot) = slot_in_force(&read_page(fd.as_fd()).unwrap()).unwrap();
        assert_eq!((place as u64, slot.sequence.get()), ((epoch + 1) % 2, epoch));
    }
}

#[test]
fn the_stamp_changes_before_an_update_is_in_force() {
    let object = object();
    let fd = object.as_fd();
    create(fd, &with_epoch(1)).unwrap();
    for epoch in 2..6 {
        let before = stamp(fd).unwrap();
        assert_eq!(stamp(fd).unwrap(), before);
        let (slot, place) = next_slot(&read_page(fd).unwrap(), &with_epoch(epoch)).unwrap();
        for step in preamble::steps(place, slot.as_bytes()) {
            dmce_sys::object::write_at(fd, step.bytes, step.offset).unwrap();
            let is_in_force = decode(&read_page(fd).unwrap()).unwrap().description.epoch == epoch;
            assert!(!is_in_force || stamp(fd).unwrap() != before);
        }
        assert_ne!(stamp(fd).unwrap(), before);
    }
}

#[test]
fn a_death_anywhere_in_create_leaves_no_header_and_nothing_to_quarantine() {
    let slot = HeaderSlot::encode(&of_region(), 1).unwrap();
    let steps = preamble::steps(0, slot.as_bytes());
    die_everywhere(&[0; SLOTS * SLOT_BYTES], &steps, |done, page| match decode(page) {
        Ok(header) => assert_eq!((done, header), (3, of_region())),
        Err(error) => assert!(done < 3 && error.is_removable(), "after {done} steps: {error}"),
    });
}

#[test]
fn a_death_anywhere_in_an_update_leaves_the_earlier_header_in_force() {
    let mut page = [0; SLOTS * SLOT_BYTES];
    create_in(&mut page, &with_epoch(1));
    // The first update fills the empty slot, the second and third replace old ones.
    for epoch in 1..4 {
        let (slot, place) = next_slot(&page, &with_epoch(epoch + 1)).unwrap();
        die_everywhere(&page, &preamble::steps(place, slot.as_bytes()), |done, page| {
            let in_force = if done < 3 { epoch } else { epoch + 1 };
            assert_eq!(decode(page).unwrap(), with_epoch(in_force), "after {done} steps");
        });
        update_in(&mut page, &with_epoch(epoch + 1));
    }
}

#[test]
fn an_update_after_a_death_in_an_update_takes_the_same_slot() {
    let mut page = [0; SLOTS * SLOT_BYTES];
    create_in(&mut page, &with_epoch(1));
    update_in(&mut page, &with_epoch(2));
    let (slot, place) = next_slot(&page, &with_epoch(3)).unwrap();
    apply_all(&mut page, &preamble::steps(place, slot.as_bytes())[..2]);
    update_in(&mut page, &with_epoch(4));
    assert_eq!(decode(&page).unwrap(), with_epoch(4));
}

#[test]
fn no_changed_bit_of_a_ready_slot_goes_unnoticed_or_makes_the_block_removable() {
    let mut one = [0; SLOTS * SLOT_BYTES];
    create_in(&mut one, &of_region());
    let mut two = one;
    update_in(&mut two, &of_session());
    // Either slot alone, and the one in force beside the earlier one.
    for (page, start) in [(one, 0), (two, 0), (two, SLOT_BYTES)] {
        for bit in 0..SLOT_BYTES * 8 {
            let mut flipped = page;
            flipped[start + bit / 8] ^= 1 << (bit % 8);
            match decode(&flipped) {
                Err(HeaderError::Damaged { .. } | HeaderError::OtherVersion { .. }) => {}
                other => panic!("bit {bit} of the slot at {start} gave {other:?}"),
            }
        }
    }
}

#[test]
fn a_damaged_slot_is_not_passed_over_for_an_older_one() {
    let mut page = [0; SLOTS * SLOT_BYTES];
    create_in(&mut page, &with_epoch(1));
    update_in(&mut page, &with_epoch(2));
    page[SLOT_BYTES + 100] ^= 0x80;
    let error = decode(&page).unwrap_err();
    assert_eq!(error.to_string(), "the header is damaged: the checksum does not match");
    assert!(!error.is_removable());
}

#[test]
fn another_version_names_both() {
    let fd = object();
    create(fd.as_fd(), &of_session()).unwrap();
    object::write_at(fd.as_fd(), &9_u32.to_le_bytes(), 8).unwrap();
    let error = read(fd.as_fd(), LAYOUT).unwrap_err();
    assert_eq!(error.to_string(), "the header is of segment version 9, this release reads 2");
    assert!(!error.is_removable());
}

/// What a writer with the service's rights and a right checksum can still claim.
#[test]
fn a_slot_that_contradicts_itself_is_damaged_however_right_its_checksum() {
    let forged = |header: &BlockHeader, change: fn(&mut HeaderSlot)| {
        let mut slot = HeaderSlot::encode(header, 1).unwrap();
        change(&mut slot);
        KIND.fill_in(slot.as_mut_bytes());
        let mut page = [0; SLOTS * SLOT_BYTES];
        apply_all(&mut page, &preamble::steps(0, slot.as_bytes()));
        match decode(&page) {
            Err(HeaderError::Damaged { why }) => why,
            other => panic!("{other:?}"),
        }
    };
    let session = |change| forged(&of_session(), change);
    let region = |change| forged(&of_region(), change);
    assert_eq!(session(|s| s.block = 0.into()), "block id 0 is not between 1 and 1048575");
    assert_eq!(session(|s| s.daemon = 257.into()), "daemon id 257 is not between 1 and 256");
    assert_eq!(session(|s| s.session = 0.into()), "session id 0 is not between 1 and 1048575");
    assert_eq!(session(|s| s.epoch = 0.into()), "the block's epoch cannot be");
    assert_eq!(session(|s| s.bytes_max = (1 << 31).into()), "the block's bytes_max cannot be");
    assert_eq!(session(|s| s.span_count = 1.into()), "the block's span cannot be");
    assert_eq!(session(|s| s.page_size = 5000.into()), "the block's page_size cannot be");
    assert_eq!(session(|s| s.owner_kind = 3.into()), "owner kind 3 is none");
    assert_eq!(session(|s| s.role = 0.into()), "role 0 is no role");
    assert_eq!(session(|s| s.role = 2.into()), "the block's peers cannot be");
    assert_eq!(session(|s| s.copies = 0.into()), "the block's copies cannot be");
    assert_eq!(session(|s| s.peers = 4.into()), "4 peers are more than 3");
    assert_eq!(session(|s| s.peers = u32::MAX.into()), "4294967295 peers are more than 3");
    assert_eq!(region(|s| s.peer[1] = 1.into()), "daemon 1 is named twice");
    assert_eq!(region(|s| s.peer[1] = 2.into()), "daemon 2 is named twice");
    assert_eq!(region(|s| s.syncing = 1.into()), "daemon 1 is named twice");
    assert_eq!(region(|s| s.syncing = 2.into()), "daemon 2 is named twice");
    assert_eq!(region(|s| s.role = 3.into()), "the block's syncing cannot be");
    assert_eq!(region(|s| s.name = [0xff; 128]), "the name is not UTF-8");
    assert_eq!(region(|s| s.name = [b'x'; 128]), "the block's name cannot be");
    assert_eq!(region(|s| s.volume[0] = b'/'), "the block's volume cannot be");
    assert_eq!(region(|s| s.mode = 0o1777.into()), "the block's mode cannot be");
    assert_eq!(region(|s| s.region_size = u64::MAX.into()), "the block's base_pointer cannot be");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_ready() {
    let mut too_many = of_region();
    too_many.description.membership.peers = [1, 3, 4, 5].map(daemon).to_vec();
    let mut long_name = of_region();
    if let Owner::Region(region) = &mut long_name.description.owner {
        region.name = "x".repeat(129);
    }
    for header in [too_many, long_name] {
        let fd = object();
        assert!(matches!(create(fd.as_fd(), &header), Err(HeaderError::Unfit { .. })));
        assert!(read(fd.as_fd(), LAYOUT).unwrap_err().is_removable());
    }
}

#[test]
fn an_object_that_is_empty_or_cut_before_it_was_ready_is_removable() {
    let fd = object();
    assert!(read(fd.as_fd(), LAYOUT).unwrap_err().is_removable());
    object::truncate(fd.as_fd(), 100).unwrap();
    assert!(read(fd.as_fd(), LAYOUT).unwrap_err().is_removable());
    assert!(matches!(update(fd.as_fd(), &of_session()), Err(HeaderError::NeverReady)));
}

#[test]
fn a_ready_header_that_was_cut_is_damaged() {
    let fd = object();
    create(fd.as_fd(), &of_region()).unwrap();
    object::truncate(fd.as_fd(), 200).unwrap();
    let error = read(fd.as_fd(), LAYOUT).unwrap_err();
    assert!(matches!(error, HeaderError::Damaged { .. }), "{error}");
}
