//! Daemons that serve, refuse, lie, or say what nobody asked.

use arbitrary::{Result, Unstructured};
use dmce_abi::Status;
use dmce_abi::block::DaemonId;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::{
    DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest, HeldBlock, PoolPlace, Register,
};
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest};
use dmce_broker::dispatcher::{DaemonConn, Event, RequestId};

use super::claims;
use super::requests::message;
use super::world::{World, pick};

/// Requests that a daemon does at once.
const REQUESTS_AT_ONCE: usize = 8;

/// A daemon that has connected says who it is and what it holds, all or a part of it.
pub fn register(world: &mut World, conn: DaemonConn, bytes: &mut Unstructured<'_>) -> Result<()> {
    let daemon = claims::daemon(bytes)?;
    if bytes.ratio(1, 8)? {
        world.forge(daemon, bytes)?;
    }
    register_as(world, conn, daemon, 1 << bytes.int_in_range(14..=19)?);
    report(world, conn, daemon, bytes.ratio(7, 8)?);
    for _ in 0..bytes.int_in_range(0..=3)? {
        let place = PoolPlace(bytes.int_in_range(0..=3)?);
        lend(world, conn, place, 4096 << bytes.int_in_range(0..=6)?);
    }
    Ok(())
}

/// A daemon lends an object of its pool.
pub fn lend(world: &mut World, conn: DaemonConn, place: PoolPlace, bytes: u64) {
    let notice = DaemonNotice::Lent { place, bytes };
    say(world, conn, 0, DaemonMessage::Notice(notice));
}

/// A daemon says who it is.
pub fn register_as(world: &mut World, conn: DaemonConn, daemon: DaemonId, capacity: u64) {
    let register =
        Register { daemon, instance: "test".into(), segment_version: SEGMENT_VERSION, capacity };
    world.serving.insert(conn, daemon);
    say(world, conn, 0, DaemonMessage::Register(register));
}

/// A daemon says what it holds.
pub fn report(world: &mut World, conn: DaemonConn, daemon: DaemonId, last: bool) {
    let blocks = world.stores.entry(daemon).or_default().values().cloned().collect();
    say(world, conn, 0, DaemonMessage::Holds { blocks, damaged: Vec::new(), last });
}

/// A daemon does its oldest request, or not.
pub fn serve(world: &mut World, bytes: &mut Unstructured<'_>) -> Result<()> {
    let busy = world.daemons.iter().filter(|(_, inbox)| !inbox.is_empty());
    let busy: Vec<DaemonConn> = busy.map(|(conn, _)| *conn).collect();
    let Some(conn) = pick(bytes, busy)? else { return Ok(()) };
    // Mostly all that it was asked: what is made of it needs many answers.
    let most = if bytes.ratio(3, 4)? { REQUESTS_AT_ONCE } else { 1 };
    for _ in 0..most {
        serve_one(world, conn, bytes)?;
    }
    Ok(())
}

fn serve_one(world: &mut World, conn: DaemonConn, bytes: &mut Unstructured<'_>) -> Result<()> {
    let Some(inbox) = world.daemons.get_mut(&conn) else { return Ok(()) };
    let Some((number, request)) = inbox.pop_front() else { return Ok(()) };
    if number.0 == 0 {
        return Ok(());
    }
    let Some(&daemon) = world.serving.get(&conn) else { return Ok(()) };
    // Zeros, which are what there is behind the last byte, are the honest answer.
    let answer = match bytes.int_in_range(0..=15)? {
        14 => Err(refusal(bytes)?),
        15 => match message(bytes)? {
            Some(answer) => answer,
            None => return Ok(()),
        },
        _ => obey(world, daemon, &request),
    };
    say(world, conn, number.0, DaemonMessage::Reply(answer));
    Ok(())
}

/// A daemon says what nobody asked.
pub fn say_anything(world: &mut World, bytes: &mut Unstructured<'_>) -> Result<()> {
    let Some(conn) = pick(bytes, world.daemons.keys().copied())? else { return Ok(()) };
    let number = bytes.int_in_range(0..=31)?;
    let message = if bytes.arbitrary()? {
        let mut blocks = Vec::new();
        for _ in 0..bytes.int_in_range(0..=3)? {
            blocks.push(world.claim(bytes)?);
        }
        let damaged = world.seen.blocks.last().map(|(block, _)| *block);
        let damaged = damaged.filter(|_| blocks.is_empty()).into_iter().collect();
        DaemonMessage::Holds { blocks, damaged, last: bytes.arbitrary()? }
    } else {
        match message(bytes)? {
            Some(message) => message,
            None => return Ok(()),
        }
    };
    say(world, conn, number, message);
    Ok(())
}

fn say(world: &mut World, conn: DaemonConn, number: u64, message: DaemonMessage) {
    // The broker may have ended the connection meanwhile.
    if world.daemons.contains_key(&conn) {
        world.event(Event::DaemonMessage { conn, request_id: RequestId(number), message });
    }
}

fn refusal(bytes: &mut Unstructured<'_>) -> Result<Refusal> {
    let status = *bytes.choose(&[Status::NoSpace, Status::Exists, Status::NotFound, Status::Io])?;
    Ok(Refusal::new(status, "as the bytes say"))
}

fn obey(
    world: &mut World,
    daemon: DaemonId,
    request: &DaemonRequest,
) -> std::result::Result<DaemonAnswer, Refusal> {
    let store = world.stores.entry(daemon).or_default();
    match request {
        DaemonRequest::Create { description, committed } => {
            let there = store.get(&description.block);
            if there.is_some_and(|held| held.description.guid != description.guid) {
                return Err(Refusal::new(Status::Exists, "there is another"));
            }
            let held = HeldBlock { description: description.clone(), committed: *committed };
            store.insert(description.block, held);
            Ok(DaemonAnswer::Committed { committed: *committed })
        }
        DaemonRequest::Grow { block, committed } => match store.get_mut(block) {
            Some(held) => {
                held.committed = held.committed.max(*committed);
                Ok(DaemonAnswer::Committed { committed: held.committed })
            }
            None => Err(Refusal::new(Status::NotFound, "no such block")),
        },
        DaemonRequest::Destroy { block } => {
            store.remove(block);
            Ok(DaemonAnswer::Done)
        }
        DaemonRequest::Sense => Ok(DaemonAnswer::Sensed { pool: 0, headroom: 1 << 30 }),
        DaemonRequest::Data(DataRequest::Read { bytes, .. }) => {
            let count = usize::try_from(*bytes).unwrap_or(0);
            Ok(DaemonAnswer::Data(DataReply::Bytes(Bytes(vec![0; count]))))
        }
        DaemonRequest::Data(DataRequest::Write { .. } | DataRequest::Wake { .. }) => {
            Ok(DaemonAnswer::Data(DataReply::Done))
        }
        DaemonRequest::Data(_) => Ok(DaemonAnswer::Data(DataReply::Word(0))),
        other => panic!("{other:?} has a number and wants no answer"),
    }
}
