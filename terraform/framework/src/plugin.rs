//! The process that Terraform starts: go-plugin's handshake on standard output, then gRPC over a
//! Unix socket that only the process's user can open.

use crate::{Provider, rpc, server::Server};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use std::{
    io::{Error, Result, Write},
    os::unix::fs::PermissionsExt,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// Writes a line to standard error. A failure is ignored: there is nowhere else to report it.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}\n", format_args!($($text)*)),
        );
    }};
}

/// The environment variable, and its value, by which a plugin knows that Terraform has started it
/// (`internal/plugin` in Terraform's source).
const COOKIE: (&str, &str) =
    ("TF_PLUGIN_MAGIC_COOKIE", "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2");
/// The time that a process waits for its first connection.
const FIRST: Duration = Duration::from_mins(1);
/// The time that a process waits for another connection when the last one has ended.
const LINGER: Duration = Duration::from_secs(2);

/// Serves a provider until Terraform ends the process, or has no connection to it any more. The
/// exit code is 2 if something other than Terraform, or a Terraform without plugin protocol 6, has
/// started it.
pub async fn serve(provider: impl Provider) -> ExitCode {
    if std::env::var(COOKIE.0).ok().as_deref() != Some(COOKIE.1) {
        say!(
            "This is a Terraform provider, which Terraform starts itself: add it to \
             `required_providers` and run `terraform init`."
        );
        return ExitCode::from(2);
    }
    let versions = std::env::var("PLUGIN_PROTOCOL_VERSIONS").unwrap_or_default();
    if !versions.split(',').any(|version| version == "6") {
        say!(
            "This provider speaks plugin protocol 6, and this Terraform {versions}: use Terraform \
             1.11 or newer."
        );
        return ExitCode::from(2);
    }
    match run(provider).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("the provider cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(provider: impl Provider) -> Result<()> {
    // A terminal sends ^C to the whole process group, but it is Terraform that decides when a
    // provider stops.
    ignore_interrupts()?;
    let folder = tempfile::Builder::new()
        .prefix("meshward-plugin-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()?;
    let path = folder.path().join("plugin.sock");
    let listener = UnixListener::bind(&path)?;
    let (acceptor, certificate) = if std::env::var_os("PLUGIN_CLIENT_CERT").is_none() {
        (None, String::new())
    } else {
        let (acceptor, certificate) = tls()?;
        (Some(acceptor), certificate)
    };
    let mut stdout = std::io::stdout();
    writeln!(stdout, "1|6|unix|{}|grpc|{certificate}", path.display())?;
    stdout.flush()?;
    let ending = watch::Sender::new(false);
    let open = watch::Sender::new(0_usize);
    let server = Arc::new(Server::new(provider));
    let mut told = ending.subscribe();
    let mut left = open.subscribe();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = told.wait_for(|ending| *ending) => break,
            () = abandoned(&mut left) => break,
        };
        open.send_modify(|count| *count += 1);
        let (server, ending, open, acceptor) =
            (server.clone(), ending.clone(), open.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(server, ending, acceptor, stream).await {
                say!("a connection of Terraform ended: {error}");
            }
            open.send_modify(|count| *count -= 1);
        });
    }
    // The response to the last request may still be in flight.
    let _ = tokio::time::timeout(LINGER, left.wait_for(|count| *count == 0)).await;
    Ok(())
}

/// Returns once no first connection comes within [`FIRST`], or the last one has been closed for
/// [`LINGER`]: a Terraform that was killed does not end its plugins.
async fn abandoned(left: &mut watch::Receiver<usize>) {
    loop {
        if !matches!(
            tokio::time::timeout(FIRST, left.wait_for(|count| *count > 0)).await,
            Ok(Ok(_))
        ) {
            return;
        }
        if left.wait_for(|count| *count == 0).await.is_err() {
            return;
        }
        if tokio::time::timeout(LINGER, left.changed()).await.is_err() {
            return;
        }
    }
}

async fn connection<P: Provider>(
    server: Arc<Server<P>>,
    ending: watch::Sender<bool>,
    acceptor: Option<TlsAcceptor>,
    stream: UnixStream,
) -> Result<()> {
    let service = service_fn(move |request| rpc::answer(server.clone(), ending.clone(), request));
    let http = http2::Builder::new(TokioExecutor::new());
    let served = match acceptor {
        None => http.serve_connection(TokioIo::new(stream), service).await,
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            http.serve_connection(TokioIo::new(stream), service).await
        }
    };
    served.map_err(Error::other)
}

/// Configures TLS as go-plugin wants it: with a self-signed certificate, which the process
/// announces on its standard output. Returns the certificate in base64.
///
/// The client's certificate is not verified. Its key is on P-521, which ring does not support, and
/// verifying it would keep out only processes that can open the socket: those of the same user,
/// which could read this process's memory as well.
fn tls() -> Result<(TlsAcceptor, String)> {
    let key = KeyPair::generate().map_err(Error::other)?;
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .map_err(Error::other)?;
    let told = BASE64_STANDARD_NO_PAD.encode(certificate.der());
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(Error::other)?;
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), told))
}

fn ignore_interrupts() -> Result<()> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map(drop)
}
