-- A fleet of some years, for the plans of every statement: a million readings and the rest in proportion. Every table of the
-- migrations has rows here, but for those that have one or a few by nature.
INSERT INTO devices (device_id, first_seen, last_seen, online, session, epoch, retired_at)
SELECT 'device-' || d, now(), now(), d % 20 <> 0, 1, 1, CASE WHEN d % 100 = 0 THEN now() END
FROM generate_series(0, 19999) AS d;
INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, ledger_version, merge_due, reported_at, reported_pending)
SELECT 'device-' || d, e, now(), now(), 1, d % 1000 = 0, now(), 0
FROM generate_series(0, 19999) AS d, generate_series(1, 2) AS e;
INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1700000000 + 60 * m), m, 0, m, 1, 7 * m + s + 1, now()
FROM generate_series(0, 99) AS d, generate_series(0, 6) AS s, generate_series(0, 1439) AS m;
INSERT INTO telemetry_data_leaving (device_id, sensor, observed_at)
SELECT device_id, sensor, observed_at FROM telemetry_data WHERE device_id = 'device-1';
INSERT INTO telemetry_hours (device_id, sensor, start_at, quality, numbers, low, high, small_sum, big_sum, first_at, first_number,
    last_at, last_number, has_minutes)
SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1700000000 + 3600 * h), 0, 60, 0, 1, 30, 0, now(), 0, now(), 1, h % 100 = 0
FROM generate_series(0, 99) AS d, generate_series(0, 6) AS s, generate_series(0, 999) AS h;
INSERT INTO telemetry_minutes (device_id, sensor, start_at, quality, numbers, low, high, small_sum, big_sum, first_at, first_number,
    last_at, last_number)
SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1700000000 + 60 * m), 0, 60, 0, 1, 30, 0, now(), 0, now(), 1
FROM generate_series(0, 9) AS d, generate_series(0, 6) AS s, generate_series(0, 1439) AS m;
INSERT INTO rollup_status (device_id, rolled_from, rolled_until)
SELECT 'device-' || d, to_timestamp(1700000000), to_timestamp(1700086400) FROM generate_series(0, 19999) AS d;
INSERT INTO rollup_marks (device_id, sensor, hour_at, marks, marked_at, touched_at)
SELECT 'device-' || d, 'sensor-' || h % 7, to_timestamp(1700000000 + 3600 * h), 1, to_timestamp(1700000000 + h), now()
FROM generate_series(0, 999) AS d, generate_series(0, 9) AS h;
INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, recorded_at)
SELECT 'device-' || d, 1, 1 + 10 * r, 'committed', 9 + 10 * r, 0, now()
FROM generate_series(0, 19999) AS d, generate_series(0, 9) AS r;
INSERT INTO conflicts (device_id, sensor, observed_at, hlc, epoch, seq, value_i64, quality, received_at,
    winner_hlc, winner_epoch, winner_seq, recorded_at)
SELECT 'device-' || d, 's', to_timestamp(1700000000 + c), c, 1, c + 1, 1, 0, now(), c, 2, c, to_timestamp(1700000000 + c)
FROM generate_series(0, 999) AS d, generate_series(0, 99) AS c;
INSERT INTO dead_letters (device_id, payload_digest, topic, payload, payload_bytes, reason, times, received_at)
SELECT 'device-' || d % 1000, d, 't', '', 0, 'no', 1, to_timestamp(1700000000 + d) FROM generate_series(0, 49999) AS d;
INSERT INTO commands (device_id, id, name, arguments, priority, state, step, percent, output,
    created_at, created_by, expires_at, sent_times, cancel, due_at, ended_at, request_key)
SELECT 'device-' || d, 'id-' || i, 'ping', '{}', 0,
    CASE WHEN i = 0 AND d % 100 = 0 THEN 'queued' ELSE 'succeeded' END,
    CASE WHEN i = 0 AND d % 100 = 0 THEN 0 ELSE 4 END, 0, '', now(), 'x',
    to_timestamp(1700000000 + d), 0, false,
    CASE WHEN i = 0 AND d % 100 = 0 THEN to_timestamp(1700000000 + d) END,
    CASE WHEN i = 0 AND d % 100 = 0 THEN NULL ELSE now() END,
    CASE WHEN i = 1 THEN 'key-' || d END
FROM generate_series(0, 19999) AS d, generate_series(0, 4) AS i;
INSERT INTO fan_outs (id, name, arguments, priority, labels, interval_micros, ttl_micros, created_at, created_by, devices,
    after_device, next_due_at, expires_at, spread, unfinished, touched_at, request_key)
SELECT 'id-' || f, 'ping', '{}', 0, '{}', 0, 0, now(), 'x', 1, '', now(), now(), true, f % 1000 = 0, now(), 'key-' || f
FROM generate_series(0, 4999) AS f;
INSERT INTO device_labels (device_id, key, value)
SELECT 'device-' || d, 'group', 'group-' || d % 200 FROM generate_series(0, 19999) AS d
UNION ALL SELECT 'device-' || d, 'site', 'site-' || d % 2 FROM generate_series(0, 19999) AS d;
INSERT INTO device_config (device_id, key, value, hlc, changed_at, changed_by)
SELECT 'device-' || d, 'k' || k, '1', 1, now(), 'x' FROM generate_series(0, 19999) AS d, generate_series(0, 2) AS k;
INSERT INTO config_history (device_id, key, value, hlc, changed_at, changed_by, from_group)
SELECT 'device-' || d, 'k' || h % 3, '1', h, now(), 'x', CASE WHEN h = 0 THEN 'group-1' END
FROM generate_series(0, 999) AS d, generate_series(0, 99) AS h;
INSERT INTO reported_config (device_id, key, value, hlc, reported_at, failure)
SELECT 'device-' || d, 'k' || k, '1', 1, now(), CASE WHEN d % 1000 = 0 THEN 'no' END
FROM generate_series(0, 19999) AS d, generate_series(0, 2) AS k;
INSERT INTO group_config (group_name, key, value, hlc, changed_at, changed_by)
SELECT 'group-' || g, 'k' || k, '1', 1, now(), 'x' FROM generate_series(0, 999) AS g, generate_series(0, 9) AS k;
INSERT INTO group_history (group_name, key, hlc, value, changed_at, changed_by)
SELECT 'group-' || g, 'k', h, '1', now(), 'x' FROM generate_series(0, 999) AS g, generate_series(0, 19) AS h;
INSERT INTO revoked_tokens (jti, subject, reason, revoked_at, revoked_by, expires_at)
SELECT 'token-' || t, 'x', '', now(), 'x', now() FROM generate_series(0, 9999) AS t;
INSERT INTO revoked_subjects (subject, issued_until, reason, revoked_at, revoked_by)
SELECT 'subject-' || t, now(), '', now(), 'x' FROM generate_series(0, 9999) AS t;
INSERT INTO audit_log (at, id, actor, action, target, address, outcome)
SELECT to_timestamp(1700000000 + a), a, 'x', 'x', 'x', 'x', 'x' FROM generate_series(0, 99999) AS a;
INSERT INTO alerts (id, rule, device_id, detail, opened_at, last_seen_at, resolved_at)
SELECT 'alert-' || a, 'device_offline', 'device-' || a % 10000, '', to_timestamp(1700000000 + a), now(),
    CASE WHEN a >= 100 THEN to_timestamp(1700000000 + a) END
FROM generate_series(0, 49999) AS a;
INSERT INTO kept_aside (kind, device_id, kept, kept_bytes, dropped, dropped_bytes, dropped_at)
SELECT k, 'device-' || d, 1, 1, 0, 0, CASE WHEN d % 1000 = 0 THEN now() END
FROM generate_series(0, 9999) AS d, unnest(ARRAY['dead_letters', 'conflicts']) AS k;
INSERT INTO dropped_losers (device_id, epoch, losers, digest_low, digest_high, first_seq, last_seq)
SELECT 'device-' || d, 1, 1, 1, 1, 1, 1 FROM generate_series(0, 9999) AS d;
INSERT INTO sensors (device_id, sensor, unit, hlc, digest, declared_at)
SELECT 'device-' || d, 'sensor-' || s, 'Cel', 1, 1, now() FROM generate_series(0, 9999) AS d, generate_series(0, 6) AS s;
INSERT INTO skewed_clocks (device_id, skew_ms, device_time_ms, reported_at)
SELECT 'device-' || d, 20000, 0, now() FROM generate_series(0, 4999) AS d;
ANALYZE;
