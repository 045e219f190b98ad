//! An endpoint, declared once: method, path, who may, what it takes and what it answers. A bridge
//! serves it, and a client asks it, by its type.

use std::fmt::Debug;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{RefOr, Schema};

use crate::Access;
use crate::request::Request;

/// One endpoint. Declared with [`endpoint!`](crate::endpoint).
pub trait Endpoint: Send + Sync + 'static {
    /// Its name in the description; no other has it.
    const NAME: &'static str;
    /// Its method.
    const METHOD: Method;
    /// Its path, with the names of [`Self::Path`] in braces.
    const PATH: &'static str;
    /// What it asks of its caller.
    const ACCESS: Access;
    /// Under what it stands in the description.
    const TAG: &'static str;
    /// What it does: a line, and maybe more behind an empty one.
    const DOC: &'static str;
    /// Whether it takes a body.
    const HAS_BODY: bool;
    /// The status of an answer that all went well with.
    const STATUS: u16;

    /// What its path names.
    type Path: Parameters;
    /// What may stand behind the question mark.
    type Query: Parameters;
    /// What is sent to it, as JSON.
    type Body: Serialize + DeserializeOwned + ToSchema + Clone + Debug + Send;
    /// What it answers, as JSON.
    type Answer: Serialize + DeserializeOwned + ToSchema + Send;

    /// Adds to its description what does not follow from its types.
    fn describe(_operation: &mut Operation) {}

    /// Shapes that its description names besides those of body and answer.
    fn shapes() -> Vec<(String, RefOr<Schema>)> {
        Vec::new()
    }

    /// A request of it, for what its path names.
    fn at(path: Self::Path) -> Request<Self>
    where
        Self: Sized,
        Self::Query: Default,
    {
        Request::new(path)
    }
}

/// The parameters of a path or of a query string: a struct whose fields are texts, numbers,
/// truth values, what is read from a text, or some of these.
pub trait Parameters: Serialize + DeserializeOwned + IntoParams + Clone + Debug + Send {}

impl<T> Parameters for T where T: Serialize + DeserializeOwned + IntoParams + Clone + Debug + Send {}

/// No parameters, or no body.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, IntoParams, ToSchema,
)]
pub struct Nothing {}

/// The query of a list that comes in one piece.
impl Paged for Nothing {
    const HAS_AFTER: bool = false;

    fn page(&mut self, _: crate::Limit, _: Option<String>) {}
}

/// The answer of an endpoint that is a page of a list.
pub trait Listing {
    /// One entry.
    type Entry: DeserializeOwned;
    /// Under which name the answer holds its entries.
    const ENTRIES: &'static str;
}

/// The query of a list that is given in pages.
pub trait Paged: Parameters {
    /// Whether it can name the place where another page ended.
    const HAS_AFTER: bool;

    /// Asks for at most so many entries, behind where another page ended.
    fn page(&mut self, limit: crate::Limit, after: Option<String>);
}

/// Declares an [`Endpoint`]; the documentation of it is its description's.
///
/// ```text
/// endpoint! {
///     /// Shows a command
///     ShowCommand: GET "/api/v1/devices/{device}/commands/{command}", ReadDevice, "commands";
///     path OfCommand; answer Command
/// }
/// ```
///
/// Behind `path` may stand `query`, `body`, `answer`, `status` (unless 200), `also`: a function that completes the
/// description, and `shapes`: what that one names.
macro_rules! endpoint {
    (
        $(#[doc = $doc:literal])+
        $name:ident: $method:ident $path:literal, $access:ident, $tag:literal
        $(; path $of:ty)? $(; query $query:ty)? $(; body $body:ty)? ; answer $answer:ty
        $(; status $status:literal)? $(; also $also:expr)? $(; shapes $($shape:ty),+)?
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl $crate::Endpoint for $name {
            const NAME: &'static str = stringify!($name);
            const METHOD: ::http::Method = ::http::Method::$method;
            const PATH: &'static str = $path;
            const ACCESS: $crate::Access = $crate::Access::$access;
            const TAG: &'static str = $tag;
            const DOC: &'static str = concat!($($doc, "\n"),+);
            const HAS_BODY: bool = [$(stringify!($body),)? ""].len() == 2;
            const STATUS: u16 = [$($status,)? 200][0];

            type Path = $crate::endpoint::given!($($of)?);
            type Query = $crate::endpoint::given!($($query)?);
            type Body = $crate::endpoint::given!($($body)?);
            type Answer = $answer;

            $(
                fn describe(operation: &mut ::utoipa::openapi::path::Operation) {
                    ($also)(operation);
                }
            )?
            $(
                fn shapes() -> Vec<(String, ::utoipa::openapi::RefOr<::utoipa::openapi::Schema>)> {
                    [$($crate::description::schemas_of::<$shape>()),+].concat()
                }
            )?
        }
    };
}

/// A type, or [`Nothing`].
macro_rules! given {
    () => {
        $crate::Nothing
    };
    ($of:ty) => {
        $of
    };
}

/// Declares what a page of a list is made of: its struct, its entries' field, and its query.
macro_rules! listing {
    ($answer:ident . $entries:ident: $entry:ty) => {
        impl $crate::Listing for $answer {
            type Entry = $entry;
            const ENTRIES: &'static str = {
                // It is that field, and holds these.
                let _: fn(&$answer) -> &Vec<$entry> = |answer| &answer.$entries;
                stringify!($entries)
            };
        }
    };
}

/// A query with `limit` and `after`.
macro_rules! paged {
    ($query:ident, after) => {
        impl $crate::Paged for $query {
            const HAS_AFTER: bool = true;

            fn page(&mut self, limit: $crate::Limit, after: Option<String>) {
                self.limit = Some(limit);
                if let Some(after) = after {
                    self.after = Some(after);
                }
            }
        }
    };
}

pub(crate) use {endpoint, given, listing, paged};
