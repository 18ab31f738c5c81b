//! Regions get other numbers of copies while they are used, and whoever dies over that.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use dmce_abi::wire::admin::{AdminReply, AdminRequest};
use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionName};
use dmce_tests::checker::wait_sound;
use dmce_tests::{Instance, wait_until};
use libdmce::Mirror;
use libdmce::connection::{Connection, ConnectionError};

use super::moving::{check, dies_after, good, raisers, region, start};

/// Asks for so many copies of the only region. `false` if the broker has died over it.
fn set(instance: &Instance, copies: u32) -> bool {
    let region = RegionName { volume: "vol".to_owned(), name: "moves".to_owned() };
    let request = AdminRequest::SetCopies { region, copies };
    let asked = Connection::connect(instance.socket())
        .and_then(|mut broker: Connection| broker.request(&ClientRequest::Admin(request)));
    match asked {
        Ok((ClientReply::Admin(AdminReply::CopiesSet { .. }), _)) => true,
        Ok((other, _)) => panic!("{other:?}"),
        Err(ConnectionError::Refused(refusal)) => panic!("{}", refusal.text),
        Err(_) => false,
    }
}

fn wait_for_copies(instance: &Instance, copies: u32) {
    wait_until("it has its copies and no others", || {
        let row = instance.blocks().remove(0);
        good(&row).len() == copies as usize && row.copies.len() == copies as usize
    });
}

/// A word is raised without a lock and under one.
#[test]
fn no_word_that_is_raised_while_copies_come_and_go_is_raised_in_vain() {
    let instance = start();
    let (session, region) = region(&instance, 1);
    let (mut clients, asked) = raisers(&instance, &region);
    for copies in [2, 3, 1].into_iter().cycle().take(24) {
        assert!(set(&instance, copies));
        wait_for_copies(&instance, copies);
    }
    for client in &mut clients {
        client.answer().unwrap();
    }
    assert_eq!(session.add64(region.addr(4096).unwrap(), 0).unwrap(), asked);
}

/// The broker dies after steps of the change that others can find: after each of the first, and
/// then after some of them. The next one goes on with what the headers say, be it the one number or
/// the other.
#[test]
fn wherever_the_broker_dies_over_another_number_of_copies_the_block_has_one_of_both() {
    let mut instance = start();
    let (session, region) = region(&instance, 1);
    region.write(0, &vec![9; 500_000], Mirror::Both).unwrap();
    for (from, to) in [(1, 2), (1, 3), (3, 2), (3, 1)] {
        let (mut deaths, mut step) = (0, 10);
        loop {
            assert!(set(&instance, from));
            wait_for_copies(&instance, from);
            if !dies_after(&mut instance, step, |instance| set(instance, to)) {
                break;
            }
            let said = instance.regions()[0].copies;
            assert!([from, to].contains(&said), "{said} of {from} and {to}");
            check(&instance, &region, said, u8::try_from(step % 250).unwrap());
            deaths += 1;
            step += 1 + deaths / 10;
        }
        assert!(deaths > 10, "{deaths} deaths between {from} and {to} copies");
        check(&instance, &region, to, 251);
    }
    region.close().unwrap();
    session.close().unwrap();
    assert_eq!(wait_sound(&instance).good, 1);
}
