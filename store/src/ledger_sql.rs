//! The one query that both databases read the ledger with; what differs is how a page is chosen.

/// A page of epochs with their reports, what became of their devices' rows, and their ranges.
macro_rules! books {
    ($page:literal) => {
        concat!(
            "SELECT p.device_id, p.epoch, p.first_seen, p.reported_at, p.device_time_ms, \
             p.reported_accepted, p.reported_committed, p.reported_pending, p.reported_evicted, \
             coalesce(p.reported_quarantined, 0), \
             coalesce(p.reported_discarded, p.reported_rejected), p.direct, \
             d.superseded, d.expired, d.expired_before, \
             l.kind, l.reason, l.first_seq, l.last_seq, l.digest, l.hlc_max, \
             l.observed_min, l.observed_max, l.recorded_at, l.discarded_by FROM (",
            $page,
            ") AS p LEFT JOIN devices AS d ON d.device_id = p.device_id \
             LEFT JOIN ledger AS l ON l.device_id = p.device_id AND l.epoch = p.epoch \
             ORDER BY p.device_id, p.epoch, l.first_seq"
        )
    };
}
