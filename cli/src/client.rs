//! Where `meshctl` sends its requests.

use crate::{Mistake, arguments::Common};
use anyhow::Result;
use meshward_client::Error;
use meshward_client::context::Context as ApiContext;
use serde::{Serialize, de::DeserializeOwned};

/// Where requests go. What the other side refuses is the user's mistake.
pub struct Client(meshward_client::Client);

impl Client {
    /// The coordinator of the context.
    ///
    /// # Errors
    /// [`Mistake`] if there is no context.
    pub fn coordinator(common: &Common) -> Result<Self> {
        Ok(Self(meshward_client::Client::coordinator(context(common)?).dry(common.dry_run)))
    }

    /// Whether there is a coordinator to ask.
    pub fn has_context(common: &Common) -> bool {
        context(common).is_ok()
    }

    /// The same, whose writes only say what would happen.
    pub fn dry(self) -> Self {
        Self(self.0.dry(true))
    }

    /// The node daemon of this machine.
    pub fn node(common: &Common) -> Self {
        Self(meshward_client::Client::node(&common.socket).dry(common.dry_run))
    }

    /// The same, which waits for a daemon that has just begun.
    pub fn patient(self, wait: std::time::Duration) -> Self {
        Self(self.0.patient(wait))
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.0.get(path).await.map_err(told)
    }

    /// Reads into a file, and gives its length in bytes.
    pub async fn download(&self, path: &str, file: &mut impl std::io::Write) -> Result<u64> {
        self.0.download(path, file).await.map_err(told)
    }

    /// Writes; the answer has a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.0.post(path, body).await.map_err(told)
    }

    /// Puts something into the place of what is there; the answer has a body.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.0.put(path, body).await.map_err(told)
    }

    /// Changes; the answer has a body.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.0.patch(path, body).await.map_err(told)
    }

    /// Deletes.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.0.delete(path).await.map_err(told)
    }
}

/// What the other side refuses is the user's mistake.
pub fn told(error: Error) -> anyhow::Error {
    match error {
        Error::Refused { text, .. } => Mistake(text).into(),
        other => other.into(),
    }
}

/// Where the coordinator is, and who we are to it.
///
/// # Errors
/// [`Mistake`] if there is no context.
pub fn context(common: &Common) -> Result<ApiContext> {
    let found = meshward_client::context::find(common.context.as_deref()).map_err(told)?;
    found.ok_or_else(|| {
        Mistake(
            "meshctl does not know which coordinator to talk to; take in the coordinator's admin.json from its data folder with: meshctl context import admin.json"
                .into(),
        )
        .into()
    })
}
