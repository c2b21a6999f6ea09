//! Lists: in pages, filtered, and single entries of them.

use super::{
    caller::Caller,
    problem::ApiError,
    request::Params,
    state::Api,
    watch::{self, Entries, Watched},
};
use crate::mesh::Mesh;
use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use meshward_api_types::{MAX_PAGE, Page, USUAL_PAGE};
use meshward_control_state::{change_log::ListKind, world::World};
use meshward_types::{Labels, Revision, Selector};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};

/// The parameters that every list has.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ListParams {
    limit: Option<u32>,
    cursor: Option<String>,
    watch: Option<String>,
    revision: Option<Revision>,
}

impl ListParams {
    /// Returns the maximum number of entries of the page.
    ///
    /// # Errors
    /// 400 if it is not from 1 to [`MAX_PAGE`].
    pub(super) fn limit(&self) -> Result<usize, ApiError> {
        match self.limit.unwrap_or(USUAL_PAGE) {
            limit @ 1..=MAX_PAGE => Ok(limit as usize),
            limit => {
                let text = format!("`limit` is from 1 to {MAX_PAGE}, not {limit}");
                Err(ApiError::malformed(text).about("limit"))
            }
        }
    }

    /// Returns the key after which the page begins.
    ///
    /// # Errors
    /// 404 if the cursor is none of this API.
    pub(super) fn after(&self) -> Result<Option<String>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let key =
            BASE64_URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|key| String::from_utf8(key).ok());
        match key.filter(|key| !key.is_empty()) {
            Some(key) => Ok(Some(key)),
            None => {
                let text = "`cursor` is no cursor: copy `next` of the page before, or leave it out";
                Err(ApiError::missing(text).about("cursor"))
            }
        }
    }

    /// Returns the revision before which the page begins, in lists that are ordered by revision,
    /// the newest first.
    ///
    /// # Errors
    /// 404 if the cursor is none of such a list.
    pub(super) fn before(&self) -> Result<Option<Revision>, ApiError> {
        let Some(key) = self.after()? else { return Ok(None) };
        let revision = key.parse().map_err(|_| {
            ApiError::missing("`cursor` is one of another list; leave it out to begin anew")
                .about("cursor")
        })?;
        Ok(Some(revision))
    }

    /// Returns `true` for a watch.
    ///
    /// # Errors
    /// 400 if the parameters contradict each other.
    pub(super) fn watches(&self) -> Result<bool, ApiError> {
        match self.watch.as_deref() {
            None | Some("0" | "false") => {}
            Some("1" | "true") => {
                if self.limit.is_some() || self.cursor.is_some() {
                    let text = "a watch is of the whole list: leave `limit` and `cursor` out";
                    return Err(ApiError::malformed(text).about("watch"));
                }
                return Ok(true);
            }
            Some(_) => return Err(ApiError::malformed("`watch` is 1, or left out").about("watch")),
        }
        match self.revision {
            Some(_) => Err(ApiError::malformed("`revision` goes with `watch=1`; leave it out")
                .about("revision")),
            None => Ok(false),
        }
    }

    /// Returns the revision from which a watch goes on: the parameter, or the header
    /// `Last-Event-ID` that browsers send when they reconnect.
    ///
    /// # Errors
    /// 400 if the header is no revision.
    pub(super) fn from(&self, headers: &HeaderMap) -> Result<Option<Revision>, ApiError> {
        let Some(header) = headers.get("last-event-id") else { return Ok(self.revision) };
        let revision = header.to_str().ok().and_then(|text| text.parse().ok());
        revision.map(Some).ok_or_else(|| {
            ApiError::malformed("Last-Event-ID is not the id of an event: a revision")
                .about("Last-Event-ID")
        })
    }
}

/// Returns the cursor of the page that begins after a key.
pub(super) fn cursor(key: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(key)
}

/// Returns a page of a complete list.
///
/// # Errors
/// Those of [`ListParams::limit`] and [`ListParams::after`].
pub(super) fn page<T>(
    entries: BTreeMap<String, T>,
    revision: Revision,
    params: &ListParams,
) -> Result<Page<T>, ApiError> {
    let (limit, after) = (params.limit()?, params.after()?);
    let mut left =
        entries.into_iter().filter(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    let (mut items, mut last) = (Vec::new(), None);
    for (key, item) in left.by_ref().take(limit) {
        items.push(item);
        last = Some(key);
    }
    let next = left.next().and(last).map(|key| cursor(&key));
    Ok(Page { items, next, revision })
}

/// An entry of a list that is read from the world.
pub(super) trait Listed: Serialize + Send + Sized + 'static {
    /// The parameters by which the list can be filtered.
    type Filter: DeserializeOwned + Default + Clone + Send + Sync + 'static;
    /// The list, as the change log names it.
    const KIND: ListKind;
    /// `true` if entries also change without a revision.
    const VOLATILE: bool = false;

    /// Refuses callers that may not read any entry.
    fn may(_: &Caller) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses a filter that cannot match anything.
    fn check(_: &World, _: &Self::Filter) -> Result<(), ApiError> {
        Ok(())
    }

    /// Returns the key, unique in the list: the rest of the path of a single entry.
    fn key(&self) -> String;

    /// Returns `true` if a caller may see the entry.
    fn is_for(&self, _: &World, _: &Caller) -> bool {
        true
    }

    /// Removes what belongs to networks that the caller does not reach.
    fn redacted_for(self, _: &Mesh, _: &World, _: &Caller) -> Self {
        self
    }

    /// Returns `true` if the entry matches a filter.
    fn fits(&self, filter: &Self::Filter) -> bool;

    /// Returns all entries, in any order.
    fn all(mesh: &Mesh, world: &World) -> Vec<Self>;

    /// Returns the keys of all entries, if there can be so many that they are read in batches, by
    /// [`Self::one`]: then no change waits for a list.
    fn keys(_: &World) -> Option<Vec<String>> {
        None
    }

    /// Returns the entry with a key.
    fn one(mesh: &Mesh, world: &World, key: &str) -> Option<Self> {
        Self::all(mesh, world).into_iter().find(|one| one.key() == key)
    }
}

/// The parameters of a request for a list.
pub(super) struct Query<F> {
    params: ListParams,
    filter: F,
    headers: HeaderMap,
}

impl<F: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<F> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        check_selectors(parts.uri.query().unwrap_or_default())?;
        let Params(params) = Params::from_request_parts(parts, state).await?;
        let Params(filter) = Params::from_request_parts(parts, state).await?;
        Ok(Self { params, filter, headers: parts.headers.clone() })
    }
}

impl<F> Query<F> {
    /// Returns the filter.
    pub(super) fn filter(&self) -> &F {
        &self.filter
    }

    /// Returns the parameters that every list has.
    pub(super) fn params(&self) -> &ListParams {
        &self.params
    }

    /// Returns the headers of the request.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

/// Returns an entry as a caller may see it.
fn visible<T: Listed>(mesh: &Mesh, world: &World, caller: &Caller, one: T) -> Option<T> {
    one.is_for(world, caller).then(|| one.redacted_for(mesh, world, caller))
}

/// The number of entries that are read from the world at once.
const BATCH: usize = 256;

/// Returns the entries that a caller may see and that match the filter, each as of the returned
/// revision or later.
fn entries<T: Listed>(mesh: &Mesh, caller: &Caller, filter: &T::Filter) -> Entries<T> {
    let keyed = |one: T| one.fits(filter).then(|| (one.key(), one));
    let first = mesh.look(|world| {
        let found = T::keys(world).ok_or_else(|| {
            let all = T::all(mesh, world).into_iter();
            all.filter_map(|one| visible(mesh, world, caller, one)).filter_map(keyed).collect()
        });
        (world.revision, found)
    });
    let (revision, keys) = match first {
        (revision, Ok(keys)) => (revision, keys),
        (revision, Err(by_key)) => return Entries { revision, by_key },
    };
    let mut by_key = BTreeMap::new();
    for keys in keys.chunks(BATCH) {
        mesh.look(|world| {
            let some = keys.iter().filter_map(|key| T::one(mesh, world, key));
            by_key
                .extend(some.filter_map(|one| visible(mesh, world, caller, one)).filter_map(keyed));
        });
    }
    Entries { revision, by_key }
}

/// Answers with a page of a list, or with what changes in it.
///
/// # Errors
/// Those of [`Listed::may`], [`Listed::check`] and of the parameters.
#[expect(clippy::unused_async, reason = "handlers of axum, which return this, are async")]
pub(super) async fn list<T: Listed>(
    State(api): State<Api>,
    caller: Caller,
    query: Query<T::Filter>,
) -> Result<Response, ApiError> {
    T::may(&caller)?;
    api.mesh.look(|world| T::check(world, &query.filter))?;
    if !query.params.watches()? {
        let Entries { revision, by_key } = entries::<T>(&api.mesh, &caller, &query.filter);
        return Ok(Json(page(by_key, revision, &query.params)?).into_response());
    }
    let from = query.params.from(&query.headers)?;
    let (mesh, filter, who) = (api.mesh.clone(), query.filter, caller.clone());
    let look: watch::Look = Arc::new(move |keys| {
        let Entries { revision, by_key } = match &keys {
            None => entries::<T>(&mesh, &who, &filter),
            Some(keys) => mesh.look(|world| {
                let found = keys.iter().filter_map(|key| {
                    Some((key.clone(), visible(&mesh, world, &who, T::one(&mesh, world, key)?)?))
                });
                let found = found.filter(|(_, one)| one.fits(&filter)).collect();
                Entries { revision: world.revision, by_key: found }
            }),
        };
        let values = by_key.into_iter();
        let values = values.filter_map(|(key, one)| Some((key, serde_json::to_value(one).ok()?)));
        let entries = Entries { revision, by_key: values.collect() };
        Box::pin(async move { Ok(entries) })
    });
    let interval = T::VOLATILE.then_some(watch::VOLATILE_INTERVAL);
    watch::answer(&api, caller, Watched { kind: T::KIND, interval, by_key: true, look }, from)
}

/// Returns one entry of a list.
///
/// # Errors
/// 404 if there is none that the caller may see, with `what` it was to be; and those of
/// [`Listed::may`].
pub(super) fn one<T: Listed>(
    mesh: &Mesh,
    caller: &Caller,
    key: &str,
    what: &str,
) -> Result<T, ApiError> {
    T::may(caller)?;
    let found = mesh.look(|world| visible(mesh, world, caller, T::one(mesh, world, key)?));
    found.ok_or_else(|| {
        let key: String = key.chars().take(80).collect();
        ApiError::missing(format!("there is no {what} `{key}`"))
    })
}

/// A label selector as a parameter: `app=web,env in (prod,stage)`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct BySelector(Selector);

impl TryFrom<String> for BySelector {
    type Error = meshward_types::selector::BadSelector;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl BySelector {
    pub(super) fn matches(&self, labels: &Labels) -> bool {
        self.0.matches(labels)
    }
}

/// Refuses malformed selectors. They answer 422: the grammar of selectors cannot be a pattern of
/// the API's document, so the form of the request is right.
fn check_selectors(query: &str) -> Result<(), ApiError> {
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if let ("selector" | "from" | "to", Err(error)) = (&*name, value.parse::<Selector>()) {
            let text = format!("the parameter `{name}`: {error}");
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, text).about(name));
        }
    }
    Ok(())
}

/// Returns `true` if a value is the wanted one, or none is wanted.
pub(super) fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

/// Returns `true` if a selector matches labels, or none is given.
pub(super) fn selects(wanted: Option<&BySelector>, labels: &Labels) -> bool {
    wanted.is_none_or(|wanted| wanted.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_are_the_list_each_entry_once_in_order(
            keys in proptest::collection::btree_set("[a-z/0-9é-]{1,6}", 0..60),
            limit in 1u32..20,
        ) {
            let all: BTreeMap<String, String> =
                keys.iter().map(|key| (key.clone(), key.clone())).collect();
            let mut params = ListParams { limit: Some(limit), ..ListParams::default() };
            let mut found = Vec::new();
            loop {
                let page = page(all.clone(), Revision(1), &params).unwrap();
                prop_assert!(page.items.len() <= limit as usize);
                found.extend(page.items);
                match page.next {
                    Some(next) => params.cursor = Some(next),
                    None => break,
                }
            }
            prop_assert_eq!(found, keys.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_limit_out_of_bounds_and_an_unknown_cursor_are_refused() {
        let params = |limit, cursor: Option<&str>| ListParams {
            limit,
            cursor: cursor.map(ToOwned::to_owned),
            ..ListParams::default()
        };
        assert!(
            params(Some(0), None).limit().is_err()
                && params(Some(MAX_PAGE + 1), None).limit().is_err()
        );
        for bad in ["", "!", "a", "____"] {
            assert!(params(None, Some(bad)).after().is_err(), "{bad}");
        }
        assert!(params(None, Some(&cursor("web"))).before().is_err());
    }
}
