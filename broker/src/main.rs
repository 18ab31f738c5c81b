//! `dmce-broker`: the Memory Dispatcher of a DMCE instance.
//!
//! The decisions are in [`dmce_broker::dispatcher`]; this program gives it eyes and hands.
#![forbid(unsafe_code)]

mod args;
mod server;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::Args;
use crate::server::Server;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("DMCE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let served = args
        .resolve()
        .map_err(|error| error.to_string())
        .and_then(|(place, config)| Server::start(&place, &config).map_err(|error| chain(&error)))
        .and_then(|mut server| server.run().map_err(|error| chain(&error)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("dmce-broker: {line}");
            ExitCode::FAILURE
        }
    }
}

/// An error and its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
