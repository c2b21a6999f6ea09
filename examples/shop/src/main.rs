//! A service of the example shop: it answers HTTP with its name, as late as one has asked it to,
//! and gives as many bytes as one asks for.

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Path,
    routing::get,
};
use clap::Parser;
use futures::stream;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{net::TcpListener, time::sleep};

/// Serve one part of the shop over HTTP.
#[derive(Parser)]
struct Arguments {
    /// What it is called: `GET /` answers with that
    #[arg(long)]
    name: String,
    /// The TCP port
    #[arg(long)]
    port: u16,
}

const CHUNK: usize = 64 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { name, port } = Arguments::parse();
    let listener = TcpListener::bind(("::", port))
        .await
        .with_context(|| format!("cannot listen on port {port}"))?;
    let delay = Arc::new(AtomicU64::new(0));
    let own = delay.clone();
    let late_name = async move || {
        sleep(Duration::from_millis(own.load(Relaxed))).await;
        name
    };
    let set_delay = async move |Path(millis): Path<u64>| delay.store(millis, Relaxed);
    let routes = Router::new()
        .route("/", get(late_name))
        .route("/healthz", get(async || "well"))
        .route("/delay/{millis}", get(set_delay))
        .route("/bytes/{count}", get(async |Path(count): Path<u64>| zeroes(count)));
    axum::serve(listener, routes).await?;
    Ok(())
}

fn zeroes(count: u64) -> Body {
    let chunk = Bytes::from(vec![0; CHUNK]);
    let chunks = stream::unfold(count, move |left| {
        let now = chunk.slice(..left.min(CHUNK as u64) as usize);
        let rest = left - now.len() as u64;
        async move { (left > 0).then_some((Ok::<_, Infallible>(now), rest)) }
    });
    Body::from_stream(chunks)
}
