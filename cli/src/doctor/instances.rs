//! The broker that is expected, and memory of instances that nobody serves.

use std::os::fd::AsFd;
use std::path::Path;

use dmce_abi::name::Instance;
use dmce_abi::wire::admin::{Health, StatusReport};
use dmce_config::Bytes;
use dmce_sys::object;

use crate::broker::BrokerError;
use crate::error::line_of;
use crate::instance::{Home, Note};
use crate::objects::{Objects, ObjectsError, instances_in};

use super::{Finding, Patient};

pub(super) fn checks(patient: &Patient) -> Vec<Finding> {
    let mut checks = vec![broker(patient)];
    match left_over(patient) {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(Finding::unknown("leftovers", &error)),
    }
    checks
}

fn broker(patient: &Patient) -> Finding {
    let name = "broker";
    match &patient.status {
        Ok(report) => health(name, report),
        Err(error @ (BrokerError::Denied { .. } | BrokerError::Version { .. })) => {
            Finding::fail(name, line_of(error), "use the release and the group of the instance")
        }
        Err(error) if patient.expects_broker => {
            let dir = patient
                .home
                .as_ref()
                .map_or("DIR".into(), |(home, _)| home.path().display().to_string());
            Finding::fail(
                name,
                line_of(error),
                format!("dmce up --dir {dir}, or start its service"),
            )
        }
        Err(error) => {
            Finding::warn(name, line_of(error), "dmce up --dir DIR, or start the service")
        }
    }
}

fn health(name: &'static str, report: &StatusReport) -> Finding {
    let StatusReport { instance, daemons, daemons_up, version, .. } = report;
    let text = format!("instance {instance} serves, {daemons_up} of {daemons} daemons are up");
    let own = env!("CARGO_PKG_VERSION");
    match report.state {
        Health::Ok if version == own => Finding::ok(name, text),
        Health::Ok => Finding::warn(
            name,
            format!("{text}, release {version}; this command is {own}"),
            "install one release, and restart the instance",
        ),
        Health::Degraded => {
            Finding::warn(name, format!("{text}: degraded"), "see 'dmce daemons' and 'dmce blocks'")
        }
        _ => Finding::fail(name, format!("{text}: memory is lost"), "see 'dmce blocks'"),
    }
}

fn left_over(patient: &Patient) -> Result<Vec<Finding>, ObjectsError> {
    let name = "leftovers";
    let mut found = Vec::new();
    for instance in instances_in(&patient.objects)? {
        found.extend(judge(name, patient, &Objects::open(&patient.objects, instance)?));
    }
    if found.is_empty() {
        let shown = patient.objects.display();
        found.push(Finding::ok(
            name,
            format!("every object in {shown} is of an instance that serves"),
        ));
    }
    Ok(found)
}

/// A finding if nobody, or no broker, serves the instance.
fn judge(name: &'static str, patient: &Patient, objects: &Objects) -> Option<Finding> {
    // What cannot be looked at is another user's.
    let has_broker = objects.has_broker().ok()?;
    let daemons = objects.served_daemons().ok()?;
    let names = objects.names().ok()?;
    if has_broker || names.is_empty() {
        return None;
    }
    let instance = objects.instance();
    let (count, bytes) = (names.len(), Bytes(bytes_of(objects, &names)));
    let here = patient.home.as_ref().filter(|(home, note)| is_of(instance, home, note.as_ref()));
    let dir = here.map(|(home, _)| home.path());
    if !daemons.is_empty() {
        let dir = dir.unwrap_or(Path::new("DIR")).display();
        let text = format!("instance {instance} has {} daemons and no broker", daemons.len());
        return Some(Finding::warn(name, text, format!("dmce up --dir {dir}")));
    }
    let text = format!("instance {instance} has {count} objects of {bytes}, and nobody serves it");
    let fix = match dir {
        Some(dir) => {
            format!("dmce up --dir {0} to use them, or dmce down --dir {0}", dir.display())
        }
        None => format!("rm {}/{}*", patient.objects.display(), instance.prefix()),
    };
    Some(Finding::warn(name, text, fix))
}

fn is_of(instance: &Instance, home: &Home, note: Option<&Note>) -> bool {
    match note {
        Some(note) => note.instance == instance.as_str(),
        None => home.derived_name() == *instance,
    }
}

fn bytes_of(objects: &Objects, names: &[String]) -> u64 {
    let sizes = names.iter().filter_map(|name| {
        let fd = objects.dir().open_read_only(name).ok()?;
        Some(object::stat(fd.as_fd()).ok()?.allocated_bytes)
    });
    sizes.fold(0, u64::saturating_add)
}
