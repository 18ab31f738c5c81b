//! `dmce-broker`: the Memory Dispatcher of a DMCE instance.
//!
//! The decisions are in [`dmce_broker::dispatcher`]; this program gives it eyes and hands.
#![forbid(unsafe_code)]

mod args;
mod server;

use std::process::ExitCode;
use std::{env, io};

use clap::Parser;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::args::Args;
use crate::server::Server;

const LOG_VARIABLE: &str = "DMCE_LOG";

fn main() -> ExitCode {
    let args = Args::parse();
    let served = start_log()
        .and_then(|()| args.resolve().map_err(|error| error.to_string()))
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

/// `DMCE_LOG` says how much is logged: `debug`, or as `tracing-subscriber` reads it.
fn start_log() -> Result<(), String> {
    let text = env::var_os(LOG_VARIABLE).unwrap_or_default();
    let wrong = |what: &str| format!("{LOG_VARIABLE} is {:?}: {what}", text.to_string_lossy());
    let directives = text.to_str().ok_or_else(|| wrong("no UTF-8 text"))?;
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let filter = filter.parse(directives).map_err(|error| wrong(&error.to_string()))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
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
