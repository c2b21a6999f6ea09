//! The client of `meshctl`: the coordinator or the node daemon.

use crate::{Barred, Mistake, arguments::Common};
use anyhow::Result;
use meshward_api_client::Error;
use meshward_api_client::context::Context as ApiContext;
use meshward_api_types::{
    Page, Paged,
    operations::{Ask, List, Read, Remove, Write},
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Display;

/// The limit of retries after 429 (too many requests).
const BUSY: std::time::Duration = std::time::Duration::from_secs(15);

/// Parameters of a query.
type Query<'a> = &'a [(&'a str, String)];

/// The target of requests. A refusal is the user's mistake.
pub(crate) struct Client(meshward_api_client::Client);

impl Client {
    /// The coordinator of the context.
    ///
    /// # Errors
    /// [`Mistake`] if there is no context.
    pub(crate) fn coordinator(common: &Common) -> Result<Self> {
        let client = meshward_api_client::Client::coordinator(context(common)?);
        Ok(Self(client.dry(common.dry_run).persistent(BUSY)))
    }

    /// Returns `true` if there is a context to find the coordinator by.
    pub(crate) fn has_context(common: &Common) -> bool {
        context(common).is_ok()
    }

    /// Limits the client's writes to a dry run: they only return what would happen.
    pub(crate) fn dry(self) -> Self {
        Self(self.0.dry(true))
    }

    /// Has the client's writes apply only to this state (`If-Match`).
    pub(crate) fn if_match(self, etag: String) -> Self {
        Self(self.0.if_match(etag))
    }

    /// Reads one thing of the mesh, and its state.
    pub(crate) async fn read_with_state<R: DeserializeOwned>(
        &self,
        what: &Read<R>,
        arguments: &[&(dyn Display + Sync)],
    ) -> Result<(R, Option<String>)> {
        self.0.read_with_state(what, arguments).await.map_err(told)
    }

    /// The node daemon of this machine.
    pub(crate) fn node(common: &Common) -> Self {
        Self(meshward_api_client::Client::node(&common.socket).dry(common.dry_run))
    }

    /// Has the client wait for a daemon that is still starting, for up to `wait`.
    pub(crate) fn patient(self, wait: std::time::Duration) -> Self {
        Self(self.0.patient(wait))
    }

    /// Reads one thing of the mesh.
    pub(crate) async fn read<R: DeserializeOwned>(
        &self,
        what: &Read<R>,
        arguments: &[&(dyn Display + Sync)],
        query: Query<'_>,
    ) -> Result<R> {
        self.0.read(what, arguments, query).await.map_err(told)
    }

    /// Reads a list of the mesh to its end.
    pub(crate) async fn list<P: Paged + DeserializeOwned>(
        &self,
        what: &List<P>,
        query: Query<'_>,
    ) -> Result<P> {
        self.0.list(what, &[], query).await.map_err(told)
    }

    /// Reads the entries of a list of the mesh, to its end.
    pub(crate) async fn all<T: DeserializeOwned>(
        &self,
        what: &List<Page<T>>,
        query: Query<'_>,
    ) -> Result<Vec<T>> {
        self.0.entries(what, query).await.map_err(told)
    }

    /// Reads the first page of a list of the mesh.
    pub(crate) async fn page<P: DeserializeOwned>(
        &self,
        what: &List<P>,
        arguments: &[&(dyn Display + Sync)],
        query: Query<'_>,
    ) -> Result<P> {
        self.0.page(what, arguments, query).await.map_err(told)
    }

    /// Asks what has a body and changes nothing.
    pub(crate) async fn ask<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Ask<B, R>,
        body: &B,
    ) -> Result<R> {
        self.0.ask(what, &[], body).await.map_err(told)
    }

    /// Changes something of the mesh.
    pub(crate) async fn write<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        arguments: &[&(dyn Display + Sync)],
        body: &B,
    ) -> Result<R> {
        self.0.write(what, arguments, body).await.map_err(told)
    }

    /// Changes something of the mesh, where it matters how that is refused.
    pub(crate) async fn try_write<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        body: &B,
    ) -> Result<R, Error> {
        self.0.write(what, &[], body).await
    }

    /// Removes something of the mesh, and says what it was.
    pub(crate) async fn remove<R: DeserializeOwned>(
        &self,
        what: &Remove<R>,
        arguments: &[&(dyn Display + Sync)],
    ) -> Result<R> {
        self.0.remove(what, arguments).await.map_err(told)
    }

    /// Reads.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.0.get(path).await.map_err(told)
    }

    /// Reads a text.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        self.0.text(path).await.map_err(told)
    }

    /// Reads into a file, and gives its length in bytes.
    pub(crate) async fn download(&self, path: &str, file: &mut impl std::io::Write) -> Result<u64> {
        self.0.download(path, file).await.map_err(told)
    }

    /// Writes; the answer has a body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.0.post(path, body).await.map_err(told)
    }

    /// Changes, where it matters how that is refused; the answer has a body.
    pub(crate) async fn try_patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.0.patch(path, body).await
    }

    /// Deletes.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        self.0.delete(path).await.map_err(told)
    }
}

/// Converts an error: a refusal is the user's mistake, or a matter of rights.
pub(crate) fn told(error: Error) -> anyhow::Error {
    match error {
        Error::Refused { status: Some(401 | 403), text, .. } => Barred(text).into(),
        Error::Refused { text, .. } => Mistake(text).into(),
        other => other.into(),
    }
}

/// Returns the coordinator's addresses, and the user's credential there.
///
/// # Errors
/// [`Mistake`] if there is no context.
pub(crate) fn context(common: &Common) -> Result<ApiContext> {
    let found = meshward_api_client::context::find(common.context.as_deref()).map_err(told)?;
    found.ok_or_else(|| {
        Mistake(
            "meshctl does not know which coordinator to talk to; import admin.json from the \
             coordinator's data folder: meshctl context import admin.json"
                .into(),
        )
        .into()
    })
}
