use super::*;
use crate::dispatcher::test_random::Random;
use dmce_abi::name::Instance;

fn daemon(id: u32) -> DaemonId {
    DaemonId::try_from(id).unwrap()
}

fn ledger(bytes: u64) -> Ledger {
    let mut config = DispatcherConfig::new(Instance::new("test").unwrap(), 0);
    config.quota = Quota { bytes, sessions: 2, blocks: 3, regions: 1, ..Quota::UNLIMITED };
    let mut ledger = Ledger::new(&config);
    ledger.set_capacity(daemon(1), 1000);
    ledger.set_capacity(daemon(2), 1000);
    ledger
}

fn on_one(bytes: u64) -> BTreeMap<DaemonId, u64> {
    BTreeMap::from([(daemon(1), bytes)])
}

fn none<'a>() -> impl Iterator<Item = &'a Charge> {
    std::iter::empty()
}

#[test]
fn a_reservation_pays_first_and_gets_back_what_it_paid() {
    let mut ledger = ledger(10_000);
    let account = ledger.open_account(7, on_one(600)).unwrap();
    let payer = Payer { uid: 7, account: Some(account) };
    assert_eq!(ledger.quota_left(7), 9_400);
    let charge = ledger.charge(payer, daemon(1), 700).unwrap();
    assert_eq!((ledger.quota_left(7), ledger.reserved_left(Some(account), daemon(1))), (9_300, 0));
    assert_eq!(ledger.store(daemon(1)).free(), 300);
    ledger.refund(charge);
    assert_eq!(
        (ledger.quota_left(7), ledger.reserved_left(Some(account), daemon(1))),
        (9_400, 600)
    );
    ledger.close_account(account);
    assert_eq!(ledger.store(daemon(1)), Store { capacity: 1000, committed: 0, reserved: 0 });
    ledger.audit(none(), std::iter::empty(), std::iter::empty(), std::iter::empty()).unwrap();
}

#[test]
fn a_retired_charge_costs_the_daemon_but_not_the_user() {
    let mut ledger = ledger(10_000);
    let payer = Payer { uid: 7, account: None };
    let mut charge = ledger.charge(payer, daemon(1), 700).unwrap();
    ledger.retire(&mut charge);
    assert_eq!((ledger.quota_left(7), ledger.store(daemon(1)).free()), (10_000, 300));
    ledger.refund(charge);
    assert_eq!(ledger.store(daemon(1)).free(), 1000);
}

#[test]
fn what_a_closed_account_had_reserved_returns_to_nobody() {
    let mut ledger = ledger(10_000);
    let account = ledger.open_account(7, on_one(500)).unwrap();
    let payer = Payer { uid: 7, account: Some(account) };
    let mut charge = ledger.charge(payer, daemon(1), 400).unwrap();
    ledger.retire(&mut charge);
    ledger.close_account(account);
    ledger.refund(charge);
    assert_eq!(ledger.store(daemon(1)).free(), 1000);
    ledger.audit(none(), std::iter::empty(), std::iter::empty(), std::iter::empty()).unwrap();
}

#[test]
fn each_limit_refuses_with_its_numbers_and_charges_nothing() {
    let mut ledger = ledger(1500);
    let payer = Payer { uid: 7, account: None };
    let text = |result: Result<Charge, ChargeError>| result.unwrap_err().to_string();
    assert_eq!(
        text(ledger.charge(payer, daemon(1), 1001)),
        "daemon 1 has 1000 bytes left of the 1001 needed"
    );
    let first = ledger.charge(payer, daemon(1), 900).unwrap();
    assert_eq!(
        text(ledger.charge(payer, daemon(2), 601)),
        "user 7 needs 601 bytes, quota leaves 600"
    );
    let second = ledger.charge(payer, daemon(2), 1).unwrap();
    let third = ledger.charge(payer, daemon(2), 1).unwrap();
    assert_eq!(text(ledger.charge(payer, daemon(2), 1)), "user 7 has 3 blocks, quota is 3");
    ledger
        .audit(
            [&first, &second, &third].into_iter(),
            std::iter::empty(),
            std::iter::empty(),
            std::iter::empty(),
        )
        .unwrap();

    ledger.charge_region(7).unwrap();
    assert_eq!(
        ledger.charge_region(7).unwrap_err().to_string(),
        "user 7 has 1 regions, quota is 1"
    );
    for charge in [first, second, third] {
        ledger.refund(charge);
    }
    ledger.refund_region(7);
    ledger.audit(none(), std::iter::empty(), std::iter::empty(), std::iter::empty()).unwrap();
}

/// Random charges, and after each the sums are recomputed from those that exist.
#[test]
fn charges_always_add_up() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut ledger = ledger(5000);
        let mut charges: Vec<Charge> = Vec::new();
        let mut accounts: Vec<(AccountId, u32)> = Vec::new();
        for _ in 0..300 {
            one_change(&mut random, &mut ledger, &mut charges, &mut accounts);
            ledger
                .audit(charges.iter(), std::iter::empty(), std::iter::empty(), std::iter::empty())
                .unwrap();
            for id in [1, 2] {
                let store = ledger.store(daemon(id));
                assert!(store.committed + store.reserved <= store.capacity, "seed {seed}");
            }
        }
    }
}

fn one_change(
    random: &mut Random,
    ledger: &mut Ledger,
    charges: &mut Vec<Charge>,
    accounts: &mut Vec<(AccountId, u32)>,
) {
    let place = daemon(1 + random.below(2));
    let bytes = u64::from(random.below(400));
    let index = random.index(charges.len().max(1));
    match random.below(8) {
        0 => {
            let uid = random.below(3);
            let opened = ledger.open_account(uid, BTreeMap::from([(place, bytes)]));
            accounts.extend(opened.map(|account| (account, uid)));
        }
        1 if !accounts.is_empty() => {
            let (account, _) = accounts.swap_remove(random.index(accounts.len()));
            for charge in charges.iter_mut().filter(|charge| charge.account == Some(account)) {
                ledger.retire(charge);
            }
            ledger.close_account(account);
        }
        2 | 3 if !accounts.is_empty() => {
            let (account, uid) = accounts[random.index(accounts.len())];
            let payer = Payer { uid, account: Some(account) };
            charges.extend(ledger.charge(payer, place, bytes));
        }
        4 => charges.extend(ledger.charge(Payer { uid: 9, account: None }, place, bytes)),
        _ if charges.is_empty() => {}
        5 => {
            let _ = ledger.extend(&mut charges[index], bytes);
        }
        6 => {
            let less = charges[index].bytes().saturating_sub(bytes);
            ledger.force_bytes(&mut charges[index], less);
            ledger.retire(&mut charges[index]);
        }
        _ => ledger.refund(charges.swap_remove(index)),
    }
}
