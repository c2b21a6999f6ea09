//! Refusals: why a request was not carried out.

/// The reason for which a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What was asked makes no sense as it stands.
    #[error("{0}")]
    Invalid(String),
    /// What was named is not there.
    #[error("{0}")]
    Missing(String),
    /// It clashes with what is there.
    #[error("{0}")]
    Conflict(String),
    /// It is not what the caller takes it to be any more.
    #[error("{0}")]
    Changed(String),
    /// The caller's credential does not reach that far.
    #[error("{0}")]
    Forbidden(String),
    /// The mesh has changed while it was worked out.
    #[error("the mesh has changed while this was worked out; send it again")]
    Stale,
    /// The caller asks for too much at once.
    #[error("{reason}")]
    Busy {
        /// What stands against it.
        reason: String,
        /// After how many seconds it may be tried again.
        retry_after: u64,
    },
    /// Our own failure; nothing was changed.
    #[error("{0}")]
    Failed(String),
    /// There is no room to write it down; nothing was changed.
    #[error("{0}")]
    Full(String),
    /// One of these, because of one field of what was asked.
    #[error("{refusal}")]
    About {
        /// The field of the API's body.
        field: &'static str,
        /// The reason.
        refusal: Box<Self>,
    },
}

impl Refusal {
    /// Names the field of the request that is the reason.
    pub fn about(self, field: &'static str) -> Self {
        Self::About { field, refusal: Box::new(self) }
    }
}
