//! A container runtime with an API like Docker's: Docker itself, or Podman.

use super::inspect;
use crate::daemon::Found;
use anyhow::{Context, Result};
use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    query_parameters::{EventsOptions, ListContainersOptions},
};
use futures::TryStreamExt;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Seconds that the runtime may take to answer.
const PATIENCE: u64 = 10;

/// A runtime that answers.
pub struct Engine {
    docker: Docker,
    /// What it calls itself.
    pub runtime: String,
}

impl Engine {
    /// Connects.
    ///
    /// # Errors
    /// If nothing answers on the socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, PATIENCE, API_DEFAULT_VERSION)?;
        let docker = docker.negotiate_version().await;
        let docker =
            docker.with_context(|| format!("no container runtime answers on {}", socket.display()))?;
        let version = docker.version().await?;
        let mut components = version.components.into_iter().flatten();
        let podman = components.any(|component| component.name.starts_with("Podman"));
        Ok(Self { docker, runtime: if podman { "podman" } else { "docker" }.to_owned() })
    }

    /// The running containers by the ids of their endpoints.
    ///
    /// # Errors
    /// If the runtime does not answer.
    pub async fn by_endpoint(&self) -> Result<HashMap<String, String>> {
        let running = self.docker.list_containers(None::<ListContainersOptions>).await?;
        let mut found = HashMap::new();
        for container in running {
            let (Some(id), Some(settings)) = (container.id, container.network_settings) else { continue };
            for endpoint in settings.networks.unwrap_or_default().into_values() {
                found.extend(endpoint.endpoint_id.map(|endpoint| (endpoint, id.clone())));
            }
        }
        Ok(found)
    }

    /// What the runtime says of a container, once it runs. `None`: it is not there, or is not ready.
    ///
    /// # Errors
    /// If the runtime does not answer.
    pub async fn look(&self, container: &str) -> Result<Option<Found>> {
        let inspected = match self.docker.inspect_container(container, None).await {
            Ok(inspected) => inspected,
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if inspected.state.as_ref().is_none_or(|state| state.running != Some(true)) {
            return Ok(None);
        }
        let image = inspected.image.as_deref().context("the runtime names no image")?;
        let image = self.docker.inspect_image(image).await?;
        Ok(Some(inspect::found(&self.runtime, &inspected, &image)))
    }

    /// Calls `tell` whenever a container starts or is connected to a network, until the runtime ends.
    pub async fn follow(&self, tell: impl Fn()) {
        let filters = [("event", vec!["start", "connect", "unpause"])];
        let filters =
            filters.map(|(key, values)| (key.to_owned(), values.into_iter().map(str::to_owned).collect()));
        let options = EventsOptions { filters: Some(HashMap::from(filters)), ..Default::default() };
        let mut events = std::pin::pin!(self.docker.events(Some(options)));
        while let Ok(Some(_)) = events.try_next().await {
            tell();
        }
    }
}

/// The runtimes that have answered, by their sockets.
#[derive(Default)]
pub struct Engines(HashMap<PathBuf, Engine>);

impl Engines {
    /// The runtime on a socket.
    ///
    /// # Errors
    /// If nothing answers there.
    pub async fn get(&mut self, socket: &Path) -> Result<&Engine> {
        if !self.0.contains_key(socket) {
            let engine = Engine::connect(socket).await?;
            self.0.insert(socket.to_owned(), engine);
        }
        self.0.get(socket).context("the runtime has just answered")
    }

    /// Forgets a runtime that has failed: it may be another one when it is back.
    pub fn forget(&mut self, socket: &Path) {
        self.0.remove(socket);
    }
}
