//! Lists: in pages, filtered, and single entries of them.

use super::{
    caller::Caller,
    problem::ApiError,
    request::Params,
    state::Api,
    watch::{self, Watched},
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

/// What a list is asked for, beside its filter.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Asked {
    limit: Option<u32>,
    cursor: Option<String>,
    watch: Option<String>,
    revision: Option<Revision>,
}

impl Asked {
    /// How many entries the page has at the most.
    ///
    /// # Errors
    /// 400 if that is out of bounds.
    pub(super) fn limit(&self) -> Result<usize, ApiError> {
        match self.limit.unwrap_or(USUAL_PAGE) {
            limit @ 1..=MAX_PAGE => Ok(limit as usize),
            limit => {
                let text = format!("`limit` is from 1 to {MAX_PAGE}, not {limit}");
                Err(ApiError::malformed(text).about("limit"))
            }
        }
    }

    /// The key after which the page begins.
    ///
    /// # Errors
    /// 404 if it is none that was given out.
    pub(super) fn after(&self) -> Result<Option<String>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let key =
            BASE64_URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|key| String::from_utf8(key).ok());
        match key.filter(|key| !key.is_empty()) {
            Some(key) => Ok(Some(key)),
            None => {
                let text = "`cursor` is no cursor: pass on `next` of the page before as it is, or \
                    leave it out";
                Err(ApiError::missing(text).about("cursor"))
            }
        }
    }

    /// The same where entries are numbered by revisions, the newest first.
    ///
    /// # Errors
    /// 404 if it is none that was given out.
    pub(super) fn before(&self) -> Result<Option<Revision>, ApiError> {
        let Some(key) = self.after()? else { return Ok(None) };
        let revision = key.parse().map_err(|_| {
            ApiError::missing("`cursor` is one of another list; leave it out to begin anew")
                .about("cursor")
        })?;
        Ok(Some(revision))
    }

    /// Whether it is a watch.
    ///
    /// # Errors
    /// 400 if that is not plain.
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

    /// The revision from which a watch goes on, by its parameter or as browsers say it when they
    /// connect anew.
    pub(super) fn from(&self, headers: &HeaderMap) -> Result<Option<Revision>, ApiError> {
        let Some(header) = headers.get("last-event-id") else { return Ok(self.revision) };
        let revision = header.to_str().ok().and_then(|text| text.parse().ok());
        revision.map(Some).ok_or_else(|| {
            ApiError::malformed("Last-Event-ID is not the id of an event: a revision")
                .about("Last-Event-ID")
        })
    }
}

/// A cursor for what comes after a key.
pub(super) fn cursor(key: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(key)
}

/// A page of entries that are there in full.
pub(super) fn page<T>(
    entries: BTreeMap<String, T>,
    revision: Revision,
    asked: &Asked,
) -> Result<Page<T>, ApiError> {
    let (limit, after) = (asked.limit()?, asked.after()?);
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

/// What is listed from the world.
pub(super) trait Listed: Serialize + Send + Sized + 'static {
    /// What may be asked for.
    type Filter: DeserializeOwned + Default + Clone + Send + Sync + 'static;
    /// Its list.
    const KIND: ListKind;
    /// Whether entries change without a revision, too.
    const VOLATILE: bool = false;

    /// Refuses who may not read any of it.
    fn may(_: &Caller) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses a filter that can find nothing.
    fn check(_: &World, _: &Self::Filter) -> Result<(), ApiError> {
        Ok(())
    }

    /// Its key, unique in the list: the rest of the path of a single entry.
    fn key(&self) -> String;

    /// Whether a caller may see it.
    fn is_for(&self, _: &World, _: &Caller) -> bool {
        true
    }

    /// It, as a caller sees it: what is of networks that the caller does not reach is left out.
    fn seen_by(self, _: &Mesh, _: &World, _: &Caller) -> Self {
        self
    }

    /// Whether it fits a filter.
    fn fits(&self, filter: &Self::Filter) -> bool;

    /// All of them, in any order.
    fn all(mesh: &Mesh, world: &World) -> Vec<Self>;

    /// The keys of all, if there can be so many that they are looked at some at a time, by
    /// [`Self::one`]: no change waits for a list.
    fn keys(_: &World) -> Option<Vec<String>> {
        None
    }

    /// The one with a key.
    fn one(mesh: &Mesh, world: &World, key: &str) -> Option<Self> {
        Self::all(mesh, world).into_iter().find(|one| one.key() == key)
    }
}

/// What a request for a list says.
pub(super) struct Query<F> {
    asked: Asked,
    filter: F,
    headers: HeaderMap,
}

impl<F: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<F> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        check_selectors(parts.uri.query().unwrap_or_default())?;
        let Params(asked) = Params::from_request_parts(parts, state).await?;
        let Params(filter) = Params::from_request_parts(parts, state).await?;
        Ok(Self { asked, filter, headers: parts.headers.clone() })
    }
}

impl<F> Query<F> {
    pub(super) fn filter(&self) -> &F {
        &self.filter
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

/// An entry as a caller sees it, if the caller may.
fn seen<T: Listed>(mesh: &Mesh, world: &World, caller: &Caller, one: T) -> Option<T> {
    one.is_for(world, caller).then(|| one.seen_by(mesh, world, caller))
}

/// The most entries that are made at one look.
const AT_ONCE: usize = 256;

/// The entries of a list that a caller may see and has asked for, each as it is at the revision
/// that is given, or later.
fn entries<T: Listed>(
    mesh: &Mesh,
    caller: &Caller,
    filter: &T::Filter,
) -> (Revision, BTreeMap<String, T>) {
    let keyed = |one: T| one.fits(filter).then(|| (one.key(), one));
    let first = mesh.look(|world| {
        let found = T::keys(world).ok_or_else(|| {
            let all = T::all(mesh, world).into_iter();
            all.filter_map(|one| seen(mesh, world, caller, one)).filter_map(keyed).collect()
        });
        (world.revision, found)
    });
    let (revision, keys) = match first {
        (revision, Ok(keys)) => (revision, keys),
        (revision, Err(whole)) => return (revision, whole),
    };
    let mut entries = BTreeMap::new();
    for keys in keys.chunks(AT_ONCE) {
        mesh.look(|world| {
            let some = keys.iter().filter_map(|key| T::one(mesh, world, key));
            entries.extend(some.filter_map(|one| seen(mesh, world, caller, one)).filter_map(keyed));
        });
    }
    (revision, entries)
}

/// Answers with a page of a list, or with what changes in it.
pub(super) async fn list<T: Listed>(
    State(api): State<Api>,
    caller: Caller,
    query: Query<T::Filter>,
) -> Result<Response, ApiError> {
    T::may(&caller)?;
    api.mesh.look(|world| T::check(world, &query.filter))?;
    if !query.asked.watches()? {
        let (revision, entries) = entries::<T>(&api.mesh, &caller, &query.filter);
        return Ok(Json(page(entries, revision, &query.asked)?).into_response());
    }
    let from = query.asked.from(&query.headers)?;
    let (mesh, filter, who) = (api.mesh.clone(), query.filter, caller.clone());
    let look: watch::Look = Arc::new(move |keys| {
        let seen: (Revision, BTreeMap<String, T>) = match &keys {
            None => entries::<T>(&mesh, &who, &filter),
            Some(keys) => mesh.look(|world| {
                let found = keys.iter().filter_map(|key| {
                    Some((key.clone(), seen(&mesh, world, &who, T::one(&mesh, world, key)?)?))
                });
                (world.revision, found.filter(|(_, one)| one.fits(&filter)).collect())
            }),
        };
        let values = seen
            .1
            .into_iter()
            .filter_map(|(key, one)| Some((key, serde_json::to_value(one).ok()?)));
        let seen = (seen.0, values.collect());
        Box::pin(async move { Ok(seen) })
    });
    let every = T::VOLATILE.then_some(watch::VOLATILE);
    watch::answer(&api, caller, Watched { kind: T::KIND, every, keyed: true, look }, from)
}

/// Answers with one entry of a list.
pub(super) fn one<T: Listed>(
    mesh: &Mesh,
    caller: &Caller,
    key: &str,
    what: &str,
) -> Result<T, ApiError> {
    T::may(caller)?;
    let found = mesh.look(|world| seen(mesh, world, caller, T::one(mesh, world, key)?));
    found.ok_or_else(|| {
        let key: String = key.chars().take(80).collect();
        ApiError::missing(format!("there is no {what} `{key}`"))
    })
}

/// A selector of labels, as text: `app=web,env in (prod,stage)`.
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

/// Refuses text that selects nothing: what a selector is cannot be said by a pattern, so it is not
/// a matter of form.
fn check_selectors(query: &str) -> Result<(), ApiError> {
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if let ("selector" | "from" | "to", Err(error)) = (&*name, value.parse::<Selector>()) {
            let text = format!("the parameter `{name}`: {error}");
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, text).about(name));
        }
    }
    Ok(())
}

/// Whether something is what was asked for, if anything was.
pub(super) fn is<T: PartialEq>(wanted: &Option<T>, found: &T) -> bool {
    wanted.as_ref().is_none_or(|wanted| wanted == found)
}

/// Whether labels are what was asked for, if anything was.
pub(super) fn selects(wanted: &Option<BySelector>, labels: &Labels) -> bool {
    wanted.as_ref().is_none_or(|wanted| wanted.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_are_the_list_each_entry_once_in_order(keys in proptest::collection::btree_set("[a-z/0-9é-]{1,6}", 0..60), limit in 1u32..20) {
            let all: BTreeMap<String, String> = keys.iter().map(|key| (key.clone(), key.clone())).collect();
            let mut asked = Asked { limit: Some(limit), ..Asked::default() };
            let mut found = Vec::new();
            loop {
                let page = page(all.clone(), Revision(1), &asked).unwrap();
                prop_assert!(page.items.len() <= limit as usize);
                found.extend(page.items);
                match page.next {
                    Some(next) => asked.cursor = Some(next),
                    None => break,
                }
            }
            prop_assert_eq!(found, keys.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_limit_out_of_bounds_and_a_cursor_of_nobody_are_refused() {
        let asked = |limit, cursor: Option<&str>| Asked {
            limit,
            cursor: cursor.map(ToOwned::to_owned),
            ..Asked::default()
        };
        assert!(
            asked(Some(0), None).limit().is_err()
                && asked(Some(MAX_PAGE + 1), None).limit().is_err()
        );
        for bad in ["", "!", "a", "____"] {
            assert!(asked(None, Some(bad)).after().is_err(), "{bad}");
        }
        assert!(asked(None, Some(&cursor("web"))).before().is_err());
    }
}
