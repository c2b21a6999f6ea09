//! Refusals: the reasons for which requests fail.

/// The reason for which a request fails. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is malformed or contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// Something that the request names does not exist.
    #[error("{0}")]
    Missing(String),
    /// The request conflicts with what exists.
    #[error("{0}")]
    Conflict(String),
    /// The resource is in another state than the one that the caller expects.
    #[error("{0}")]
    Changed(String),
    /// The caller's credential does not allow it.
    #[error("{0}")]
    Forbidden(String),
    /// The mesh has changed while the plan was made.
    #[error("the mesh has changed while this was worked out; send it again")]
    Stale,
    /// The caller exceeds a limit for now.
    #[error("{reason}")]
    Busy {
        /// The limit, in words.
        reason: String,
        /// The time after which the caller may try again, in seconds.
        retry_after: u64,
    },
    /// The coordinator failed.
    #[error("{0}")]
    Failed(String),
    /// The coordinator's disk is full.
    #[error("{0}")]
    Full(String),
    /// One of the others, because of one field of the body.
    #[error("{refusal}")]
    About {
        /// The field.
        field: &'static str,
        /// The reason.
        refusal: Box<Self>,
    },
}

impl Refusal {
    /// Names the field of the body that is the reason.
    #[must_use]
    pub fn about(self, field: &'static str) -> Self {
        Self::About { field, refusal: Box::new(self) }
    }
}
