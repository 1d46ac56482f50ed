//! The command `cutover-loadtest backend`: a sample backend as its own process.

use crate::cli::{Failure, interrupted, write_out};
use cutover_loadtest::backend::{Backend, BackendConfig};
use cutover_loadtest::driver::MOST_BODY_BYTES;
use cutover_loadtest::units::{Percent, UsageError, parse_duration};
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `backend`
#[derive(Debug, clap::Args)]
pub struct BackendArguments {
    /// Address to listen on; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of a port that serves only the dial; needed for the dial {"refuse":true}
    #[arg(long)]
    control: Option<SocketAddr>,
    /// Name in the x-served-by header, such as legacy or new
    #[arg(long)]
    name: String,
    /// Time that every answer takes
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,
    /// Processor time that every answer takes, in microseconds
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    work: u64,
    /// Percentage of answers with status 500, such as 0.1%
    #[arg(long, default_value = "0", value_parser = Percent::parse)]
    error_rate: Percent,
    /// Size of the body in bytes; a size below that of its JSON has no effect
    #[arg(long, default_value_t = 0, value_parser = body_bytes)]
    body_bytes: usize,
    /// Number of requests worked on at once; further ones wait
    #[arg(long)]
    concurrency: Option<usize>,
    /// Number of connections served at once; further ones are closed
    #[arg(long)]
    connections: Option<usize>,
    /// Number of threads; one for each core by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// Seed of the draws that decide which requests an error rate or a share strikes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Parses the size of a body and checks its bounds.
pub fn body_bytes(text: &str) -> Result<usize, UsageError> {
    text.parse()
        .ok()
        .filter(|bytes| *bytes <= MOST_BODY_BYTES)
        .ok_or_else(|| {
            UsageError::new(format!(
                "expected a number of bytes of at most {MOST_BODY_BYTES}, found {text:?}"
            ))
        })
}

/// Serves until the process is interrupted.
pub async fn serve(arguments: BackendArguments) -> Result<ExitCode, Failure> {
    let listen = arguments.listen;
    let backend = Backend::start(BackendConfig {
        listen,
        control: arguments.control,
        name: arguments.name,
        latency: arguments.latency,
        work: Duration::from_micros(arguments.work),
        error_rate: arguments.error_rate,
        body_bytes: arguments.body_bytes,
        concurrency: arguments.concurrency,
        connections: arguments.connections,
        seed: arguments.seed,
    })
    .await
    .map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Failure::Usage(UsageError::new(error.to_string())),
        _ => Failure::Running(io::Error::other(format!(
            "cannot listen on {listen}: {error}"
        ))),
    })?;
    let control = backend.control().map_or(String::new(), |control| {
        format!("control on http://{control}\n")
    });
    write_out(&format!(
        "{control}listening on http://{}\n",
        backend.address()
    ))?;
    interrupted().await?;
    backend.stop().await;
    Ok(ExitCode::SUCCESS)
}
