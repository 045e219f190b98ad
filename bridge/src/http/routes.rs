//! Endpoints with their handlers: none is served without standing in the API's table, which says who may ask it
//! and what it takes.

use api::Endpoint;
use api::description::Described;
use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::Stored;
use super::guard::gate;
use super::undescribed::{self, Takes};

/// Routes as they are put together.
pub(super) struct Routes {
    router: Router<Stored>,
    served: Vec<Described>,
}

impl Routes {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            router: Router::new(),
            served: Vec::new(),
        }
    }

    /// Serves an endpoint: behind who may ask it, and behind what it does not take.
    pub(super) fn serve<E: Endpoint, T: 'static>(
        mut self,
        _: E,
        handler: impl Handler<T, Stored>,
    ) -> Self {
        let filter = MethodFilter::try_from(E::METHOD).unwrap_or(MethodFilter::GET);
        let takes = Takes::of::<E>();
        let route: MethodRouter<Stored> = on(filter, handler)
            .route_layer(from_fn_with_state(takes, undescribed::refuse))
            .route_layer(from_fn_with_state(E::ACCESS, gate));
        self.router = self.router.route(E::PATH, route);
        self.served.push(Described::new::<E>());
        self
    }

    /// The router, and what it serves.
    pub(super) fn finish(self) -> (Router<Stored>, Vec<Described>) {
        (self.router, self.served)
    }
}
