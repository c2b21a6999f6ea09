//! The reasons for which the node refuses a request.

/// A refused request; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request has not the form that it has to have.
    #[error("{0}")]
    Malformed(String),
    /// The request makes no sense as things stand.
    #[error("{0}")]
    Invalid(String),
    /// The object that it names is not there.
    #[error("{0}")]
    Missing(String),
    /// The object is not as the caller has read it any more.
    #[error("{0}")]
    Changed(String),
    /// The object is not known yet: the coordinator has not sent this node everything since its
    /// start.
    #[error("{0}")]
    Early(String),
    /// A failure of this node.
    #[error("{0}")]
    Failed(String),
}
