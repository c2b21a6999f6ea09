//! The gRPC service: dispatches requests by service and method.

use crate::{
    Provider,
    server::Server,
    wire::{Diagnosed, Nothing},
};
use hyper::body::Incoming;
use prost::Message;
use std::{convert::Infallible, future::Future, sync::Arc};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;

/// The maximum size of a message in bytes: that of Terraform itself.
const MAX_MESSAGE: usize = 256 << 20;

/// Answers one request. Sets `ending` when Terraform asks the process to exit.
pub(crate) async fn answer<P: Provider>(
    server: Arc<Server<P>>,
    ending: watch::Sender<bool>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let it = server;
    let answer = match (service, method) {
        ("plugin.GRPCController", "Shutdown") => {
            let answer = unary(request, |_: Nothing| async { Nothing {} }).await;
            ending.send_replace(true);
            answer
        }
        ("tfplugin6.Provider", method) => match method {
            "GetMetadata" => unary(request, |_: Nothing| async move { it.metadata() }).await,
            "GetProviderSchema" => {
                unary(request, |_: Nothing| async move { it.provider_schema() }).await
            }
            "ValidateProviderConfig" => {
                unary(request, |q| async move { it.validate_provider(&q) }).await
            }
            "ValidateResourceConfig" => {
                unary(request, |q| async move { it.validate_resource(&q) }).await
            }
            "ValidateDataResourceConfig" => {
                unary(request, |q| async move { it.validate_data_source(&q) }).await
            }
            "ValidateEphemeralResourceConfig" => {
                unary(request, |q| async move { it.validate_ephemeral(&q) }).await
            }
            "UpgradeResourceState" => unary(request, |q| async move { it.upgrade(q) }).await,
            "ConfigureProvider" => unary(request, |q| async move { it.configure(q).await }).await,
            "ReadResource" => unary(request, |q| async move { it.read_resource(q).await }).await,
            "PlanResourceChange" => unary(request, |q| async move { it.plan(q) }).await,
            "ApplyResourceChange" => unary(request, |q| async move { it.apply(q).await }).await,
            "ImportResourceState" => unary(request, |q| async move { it.import(q) }).await,
            "ReadDataSource" => {
                unary(request, |q| async move { it.read_data_source(q).await }).await
            }
            "OpenEphemeralResource" => unary(request, |q| async move { it.open(q).await }).await,
            "CloseEphemeralResource" => unary(request, |q| async move { it.close(q).await }).await,
            // No ephemeral resource asks to be renewed.
            "RenewEphemeralResource" => {
                unary(request, |_: Nothing| async { Diagnosed { diagnostics: vec![] } }).await
            }
            // The provider has no functions.
            "GetFunctions" => unary(request, |_: Nothing| async { Nothing {} }).await,
            "StopProvider" => {
                unary(request, |_: Nothing| async move {
                    it.stop();
                    Nothing {}
                })
                .await
            }
            _ => unimplemented(&path),
        },
        _ => unimplemented(&path),
    };
    Ok(answer)
}

fn unimplemented(path: &str) -> hyper::Response<Body> {
    Status::new(Code::Unimplemented, format!("{path} is not served")).into_http()
}

async fn unary<Q, R, F>(
    request: hyper::Request<Incoming>,
    run: impl FnOnce(Q) -> F,
) -> hyper::Response<Body>
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
    F: Future<Output = R>,
{
    let mut run = Some(run);
    let service = tower::service_fn(|request: tonic::Request<Q>| {
        let run = run.take().map(|run| run(request.into_inner()));
        async move {
            match run {
                Some(run) => Ok(tonic::Response::new(run.await)),
                None => Err(Status::internal("asked twice")),
            }
        }
    });
    Grpc::new(ProstCodec::<R, Q>::default())
        .apply_max_message_size_config(Some(MAX_MESSAGE), Some(MAX_MESSAGE))
        .unary(service, request)
        .await
}
