//! Units of work: one attempt on a connection, and attempts until the budget is used up.
//!
//! These are macros because an async closure over a borrowed connection cannot be shown to be
//! `Send` for every lifetime, which the store's trait asks for; they hold no decisions, which are
//! [`super::failed`]'s and [`super::cluster`]'s.

/// `attempt!(store, purpose, |connection| work)`: leases a connection, awaits `work` (an expression
/// of `Result<T, sqlx::Error>`, in an async block of its own), and judges how it went:
/// `Result<T, Failed>`. With `|connection, era|`, `era` is the one that the connection began.
macro_rules! attempt {
    ($store:expr, $purpose:expr, |$connection:ident| $work:expr) => {
        attempt!($store, $purpose, |$connection, _era| $work)
    };
    ($store:expr, $purpose:expr, |$connection:ident, $era:ident| $work:expr) => {
        match $store.cluster.lease_for($purpose, $store.readers).await {
            Err(failed) => Err(failed),
            Ok(mut lease) => {
                let $era = lease.era;
                let $connection = &mut lease.connection;
                let work = $crate::cockroach::work::typed(async { $work });
                let done = tokio::time::timeout($store.attempt_limit(), work).await;
                lease.end(done).await
            }
        }
    };
}

/// `run!(store, budget, purpose, |connection| work)`: attempts until one ends well or the budget is
/// used up: `Result<T, StoreError>`. A query that is too slow is attempted once. For what a copy of
/// the past lacks, the present is asked.
macro_rules! run {
    ($store:expr, $budget:expr, $purpose:expr, |$connection:ident| $work:expr) => {{
        let budget: &mut $crate::cockroach::failed::Budget = $budget;
        let mut purpose: Purpose = $purpose;
        loop {
            match attempt!($store, purpose, |$connection| $work) {
                Ok(done) => break Ok(done),
                Err(failed) if purpose == Purpose::ReadStale && failed.may_be_of_the_past() => {
                    purpose = Purpose::Read;
                }
                // It would take as long again, and others wait for what it takes.
                Err(failed) if purpose.only_reads() && failed.is_too_slow() => {
                    break Err(budget.given_up(failed));
                }
                Err(failed) => {
                    if let Err(error) = $store.again(budget, failed).await {
                        break Err(error);
                    }
                }
            }
        }
    }};
}

/// Tells the compiler what an attempt returns.
pub(super) const fn typed<T, F: Future<Output = Result<T, sqlx::Error>>>(work: F) -> F {
    work
}
