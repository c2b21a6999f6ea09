//! Names: the node answers DNS queries of its workloads.
//!
//! [`resolver`] answers what the view says, in the worker that has read the query. What is not of
//! the mesh goes by a queue to [`service`], a thread of its own, which asks [`upstreams`]; it also
//! serves connections ([`streams`]). [`limits`] bounds what one workload may have asked upstream.
//! Names that rules name are asked through egress gateways ([`outside`]).

pub(crate) mod changes;
pub(crate) mod context;
pub(crate) mod counts;
pub(crate) mod gateway_queries;
pub(crate) mod host;
pub(crate) mod limits;
pub(crate) mod outside;
pub(crate) mod peer_queries;
pub(crate) mod resolver;
pub(crate) mod service;
pub(crate) mod streams;
pub(crate) mod upstreams;
