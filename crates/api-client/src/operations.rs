//! The operations of the coordinator's API, by their types: no path is written out where one is
//! asked for.

use crate::{Client, Error, decode, encode};
use hyper::Method;
use meshward_api_types::{
    Page, Paged,
    operations::{Ask, List, Read, Remove, Template, Verb, Write, escaped},
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::{Display, Write as _};

/// Parameters of a query.
pub(crate) type Query<'a> = &'a [(&'a str, String)];

/// As many entries as a page may have: a list is read in few requests.
const PAGE: u32 = meshward_api_types::MAX_PAGE;

impl Client {
    /// Reads one thing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read<R: DeserializeOwned>(
        &self,
        what: &Read<R>,
        arguments: &[&(dyn Display + Sync)],
        query: Query<'_>,
    ) -> Result<R, Error> {
        self.exchange(Method::GET, &target(what.path(), arguments, query), None).await
    }

    /// Reads one thing, and its state, which [`Client::if_match`] takes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read_with_state<R: DeserializeOwned>(
        &self,
        what: &Read<R>,
        arguments: &[&(dyn Display + Sync)],
    ) -> Result<(R, Option<String>), Error> {
        let answer = self.answer(Method::GET, &target(what.path(), arguments, &[]), None).await?;
        Ok((decode(&answer.body)?, answer.etag))
    }

    /// Reads one page of a list: the first, if the query has no `cursor`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn page<P: DeserializeOwned>(
        &self,
        what: &List<P>,
        arguments: &[&(dyn Display + Sync)],
        query: Query<'_>,
    ) -> Result<P, Error> {
        self.exchange(Method::GET, &target(what.path(), arguments, query), None).await
    }

    /// Reads a list to its end.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list<P: Paged + DeserializeOwned>(
        &self,
        what: &List<P>,
        arguments: &[&(dyn Display + Sync)],
        query: Query<'_>,
    ) -> Result<P, Error> {
        let mut query = query.to_vec();
        query.push(("limit", PAGE.to_string()));
        let mut all = self.page(what, arguments, &query).await?;
        while let Some(next) = all.next().map(ToOwned::to_owned) {
            let mut query = query.clone();
            query.push(("cursor", next));
            all.append(self.page(what, arguments, &query).await?);
        }
        Ok(all)
    }

    /// Reads the entries of a list to its end.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn entries<T: DeserializeOwned>(
        &self,
        what: &List<Page<T>>,
        query: Query<'_>,
    ) -> Result<Vec<T>, Error> {
        Ok(self.list(what, &[], query).await?.items)
    }

    /// Asks what has a body and changes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ask<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Ask<B, R>,
        arguments: &[&(dyn Display + Sync)],
        body: &B,
    ) -> Result<R, Error> {
        self.exchange(Method::POST, &target(what.path(), arguments, &[]), Some(encode(body)?)).await
    }

    /// Changes something, or says what would be if this client is [dry](Self::dry).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn write<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        arguments: &[&(dyn Display + Sync)],
        body: &B,
    ) -> Result<R, Error> {
        let method = match what.0 {
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
        };
        let path = self.write_path(&target(what.path(), arguments, &[]));
        self.exchange(method, &path, Some(encode(body)?)).await
    }

    /// Removes something, or says what would be removed if this client is [dry](Self::dry).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn remove<R: DeserializeOwned>(
        &self,
        what: &Remove<R>,
        arguments: &[&(dyn Display + Sync)],
    ) -> Result<R, Error> {
        let path = self.write_path(&target(what.path(), arguments, &[]));
        self.exchange(Method::DELETE, &path, None).await
    }
}

fn target(path: &'static str, arguments: &[&(dyn Display + Sync)], query: Query<'_>) -> String {
    let mut target = Template(path).fill(arguments);
    for (at, (name, value)) in query.iter().enumerate() {
        let sign = if at == 0 { '?' } else { '&' };
        // Writing into a string cannot fail.
        let _ = write!(target, "{sign}{name}={}", escaped(value));
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_api_types::operations;

    #[test]
    fn what_is_put_into_a_path_or_a_query_is_escaped() {
        let path = operations::ROUTE.path();
        let said =
            target(path, &[&"shop", &"node-a", &"10.0.0.0/8"], &[("selector", "app=a b&c".into())]);
        assert_eq!(said, "/v1/routes/shop/node-a/10.0.0.0%2F8?selector=app%3Da%20b%26c");
    }
}
