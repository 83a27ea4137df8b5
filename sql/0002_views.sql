-- What people read: orders, trades, positions and their history, derived from the event tables.
-- Everything here is computed from append-only rows, so it cannot contradict them.

-- ------------------------------------------------------------------ words and units

CREATE FUNCTION hftpipe.nano(value bigint) RETURNS numeric
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN value * 0.000000001;
COMMENT ON FUNCTION hftpipe.nano IS 'Exact value of an integer in 1e-9, nine decimals.';

CREATE FUNCTION hftpipe.utc(ns bigint) RETURNS timestamptz
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN timestamptz 'epoch' + ns / 1000 * interval '1 microsecond';
COMMENT ON FUNCTION hftpipe.utc IS 'UTC nanoseconds as a timestamp, cut to microseconds. For a monotonic stamp add run.utc_offset first.';

CREATE FUNCTION hftpipe.trading_date(ns bigint) RETURNS date
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN (hftpipe.utc(ns) AT TIME ZONE 'America/New_York')::date;
COMMENT ON FUNCTION hftpipe.trading_date IS 'Calendar day in New York of UTC nanoseconds.';

CREATE FUNCTION hftpipe.event_stream(event bigint) RETURNS smallint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN (event >> 56)::smallint;
CREATE FUNCTION hftpipe.event_seq(event bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN event & 72057594037927935;
CREATE FUNCTION hftpipe.event_id(stream smallint, seq bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN stream::bigint << 56 | seq;
COMMENT ON FUNCTION hftpipe.event_id IS 'Identity of an event as one word: stream << 56 | seq.';

CREATE FUNCTION hftpipe.client_order_id(run bigint, order_id bigint) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN 'hp-' || to_hex(run) || '-' || to_hex(hftpipe.event_seq(order_id));
COMMENT ON FUNCTION hftpipe.client_order_id IS 'What the venue calls the order.';

CREATE FUNCTION hftpipe.label_of(enum text, value smallint) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN coalesce((SELECT l.name FROM hftpipe.label l
                     WHERE l.enum = label_of.enum AND l.value = label_of.value),
                    enum || '(' || value || ')');
COMMENT ON FUNCTION hftpipe.label_of IS 'Name of a member of an enumeration.';

CREATE FUNCTION hftpipe.uuid_of(high bigint, low bigint) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN high <> 0 OR low <> 0
        THEN (lpad(to_hex(high), 16, '0') || lpad(to_hex(low), 16, '0'))::uuid END;
COMMENT ON FUNCTION hftpipe.uuid_of IS 'UUID from its first and last 8 bytes; NULL when there is none.';

-- ------------------------------------------------------------------ orders

CREATE INDEX resolved_order_order ON hftpipe.resolved_order (of_run, "order", run, seq);

CREATE VIEW hftpipe.resolution AS
SELECT x.* FROM hftpipe.resolved_order x
WHERE EXISTS (SELECT FROM hftpipe.account_event a
              WHERE a.run = x.run AND a.stream = x.stream AND a.kind = 1 AND a.seq > x.seq);
COMMENT ON VIEW hftpipe.resolution IS 'What starts found out about orders of earlier runs. A start that died before its books were open found out nothing: the next one looks again.';

CREATE VIEW hftpipe.orders AS
SELECT i.run, i.event AS order_id,
       hftpipe.client_order_id(i.run, i.event) AS client_order_id,
       s.symbol,
       hftpipe.label_of('side', i.side) AS side,
       hftpipe.label_of('order_type', i.type) AS order_type,
       hftpipe.label_of('tif', i.tif) AS time_in_force,
       hftpipe.nano(i.qty) AS quantity,
       CASE WHEN i.price <> 0 THEN hftpipe.nano(i.price) END AS limit_price,
       CASE WHEN z.kind IS NOT NULL THEN hftpipe.label_of('order_state', z.state)
            WHEN e.kind = 1 OR (e.kind IS NULL AND v.reason <> 0) THEN 'denied'
            WHEN e.kind IS NULL THEN 'created'
            ELSE hftpipe.label_of('order_state', e.state) END AS status,
       hftpipe.nano(greatest(e.cum_qty, z.cum_qty, 0)) AS filled_quantity,
       round((coalesce(e.value, 0) + coalesce(z.value, 0))
             / nullif(coalesce(e.filled, 0) + coalesce(z.filled, 0), 0) * 0.000000001, 9)
           AS filled_avg_price,
       CASE WHEN coalesce(nullif(z.reason, 0), nullif(e.reason, 0), v.reason, 0) <> 0
            THEN hftpipe.label_of('reason',
                                  coalesce(nullif(z.reason, 0), nullif(e.reason, 0), v.reason)) END
           AS reason,
       i.strategy, i.cause,
       CASE WHEN i.tag <> 0 THEN hftpipe.label_of('exit', i.tag) END AS exit,
       hftpipe.utc(i.ts + r.utc_offset) AS created_at,
       hftpipe.utc(e.sent + r.utc_offset) AS submitted_at,
       hftpipe.utc(e.acked + r.utc_offset) AS acked_at,
       hftpipe.utc(e.fill + r.utc_offset) AS filled_at,
       hftpipe.utc(e.canceled + r.utc_offset) AS cancelled_at,
       hftpipe.utc(coalesce(e.last, v.ts, i.ts) + r.utc_offset) AS updated_at
FROM hftpipe.intent i
JOIN hftpipe.run r ON r.run = i.run
LEFT JOIN hftpipe.instrument s ON s.run = i.run AND s.index = i.instrument
LEFT JOIN LATERAL (
    SELECT v.reason, v.ts FROM hftpipe.verdict v
    WHERE v.run = i.run AND v."order" = i.event ORDER BY v.seq LIMIT 1) v ON true
LEFT JOIN LATERAL (
    SELECT min(e.ts) FILTER (WHERE e.kind = 3) AS sent,
           min(e.ts) FILTER (WHERE e.kind = 4) AS acked,
           max(e.ts) FILTER (WHERE e.kind = 6) AS fill,
           max(e.ts) FILTER (WHERE e.kind = 7) AS canceled,
           max(e.ts) AS last, max(e.cum_qty) AS cum_qty,
           sum(e.price::numeric * e.qty) FILTER (WHERE e.kind IN (5, 6)) AS value,
           sum(e.qty) FILTER (WHERE e.kind IN (5, 6)) AS filled,
           (array_agg(e.kind ORDER BY e.seq DESC))[1] AS kind,
           (array_agg(e.state ORDER BY e.seq DESC))[1] AS state,
           (array_agg(e.reason ORDER BY e.seq DESC))[1] AS reason
    FROM hftpipe.order_event e WHERE e.run = i.run AND e."order" = i.event) e ON true
LEFT JOIN LATERAL (
    SELECT max(x.cum_qty) AS cum_qty,
           sum(x.price::numeric * x.qty) FILTER (WHERE x.kind IN (5, 6)) AS value,
           sum(x.qty) FILTER (WHERE x.kind IN (5, 6)) AS filled,
           (array_agg(x.kind ORDER BY x.run DESC, x.seq DESC))[1] AS kind,
           (array_agg(x.state ORDER BY x.run DESC, x.seq DESC))[1] AS state,
           (array_agg(x.reason ORDER BY x.run DESC, x.seq DESC))[1] AS reason
    FROM hftpipe.resolution x WHERE x.of_run = i.run AND x."order" = i.event) z ON true
WHERE i.action = 1;
COMMENT ON VIEW hftpipe.orders IS 'Every order that a strategy wanted and what became of it.';

CREATE VIEW hftpipe.trades AS
SELECT e.run, to_hex(e.run) || '-' || to_hex(e.seq) AS trade_id,
       e."order" AS order_id,
       hftpipe.client_order_id(e.run, e."order") AS client_order_id,
       s.symbol,
       hftpipe.label_of('side', e.side) AS side,
       hftpipe.nano(e.qty) AS quantity,
       hftpipe.nano(e.price) AS price,
       hftpipe.nano(e.qty) * hftpipe.nano(e.price) AS trade_value,
       hftpipe.nano(p.fee) AS commission,
       hftpipe.uuid_of(u.execution, u.execution_low) AS execution_id,
       hftpipe.uuid_of(u.venue_id, u.venue_id_low) AS venue_order_id,
       hftpipe.utc(e.ts + r.utc_offset) AS executed_at,
       hftpipe.utc(nullif(u.ts_venue, 0)) AS venue_at,
       e.ts, e.seq, e.cause
FROM hftpipe.order_event e
JOIN hftpipe.run r ON r.run = e.run
LEFT JOIN hftpipe.instrument s ON s.run = e.run AND s.index = e.instrument
LEFT JOIN LATERAL (
    SELECT u.execution, u.execution_low, u.venue_id, u.venue_id_low, u.ts_venue
    FROM hftpipe.update_event u
    WHERE u.run = e.run AND u."order" = e."order" AND u.kind IN (5, 6)
      AND u.cum_qty = e.cum_qty AND u.price = e.price
    ORDER BY u.seq LIMIT 1) u ON true
LEFT JOIN LATERAL (
    SELECT p.fee FROM hftpipe.position_event p
    WHERE p.run = e.run AND p.cause = e.event ORDER BY p.seq LIMIT 1) p ON true
WHERE e.kind IN (5, 6)
UNION ALL
SELECT x.of_run, to_hex(x.run) || '-' || to_hex(x.seq), x."order",
       hftpipe.client_order_id(x.of_run, x."order"), s.symbol,
       hftpipe.label_of('side', x.side), hftpipe.nano(x.qty), hftpipe.nano(x.price),
       hftpipe.nano(x.qty) * hftpipe.nano(x.price), hftpipe.nano(x.fee),
       hftpipe.uuid_of(x.execution, x.execution_low), hftpipe.uuid_of(x.venue_id, x.venue_id_low),
       hftpipe.utc(nullif(x.ts_venue, 0)), hftpipe.utc(nullif(x.ts_venue, 0)),
       x.ts_venue - r.utc_offset, x.seq, i.cause
FROM hftpipe.resolution x
JOIN hftpipe.run r ON r.run = x.of_run
LEFT JOIN hftpipe.intent i ON i.run = x.of_run AND i.stream = hftpipe.event_stream(x."order")
                          AND i.seq = hftpipe.event_seq(x."order")
LEFT JOIN hftpipe.instrument s ON s.run = x.of_run AND s.index = i.instrument
WHERE x.kind IN (5, 6);
COMMENT ON VIEW hftpipe.trades IS 'Our executions, with the venue''s identifiers; those that a later start learned of included. commission is what the ledger charged by its schedule; NULL where it has not booked the execution.';

CREATE VIEW hftpipe.order_audit_trail AS
SELECT a.run, hftpipe.utc(a.ts + r.utc_offset) AS timestamp_utc, a.ts, a.stream, a.seq,
       a.event_type, a.order_id,
       hftpipe.client_order_id(a.run, a.order_id) AS client_order_id,
       a.cause AS correlation_id, s.symbol,
       hftpipe.label_of('side', a.side) AS side,
       hftpipe.nano(a.qty) AS quantity,
       hftpipe.nano(nullif(a.price, 0)) AS price,
       hftpipe.label_of('order_type', a.type) AS order_type,
       hftpipe.label_of('tif', a.tif) AS tif,
       hftpipe.label_of('order_state', a.state) AS status,
       hftpipe.label_of('reason', nullif(a.reason, 0::smallint)) AS rejection_reason,
       a.metadata
FROM (
    SELECT i.run, i.ts, i.stream, i.seq,
           'intent.' || hftpipe.label_of('action', i.action) AS event_type,
           CASE WHEN i.action = 2 THEN hftpipe.event_id(i.stream, i.target) ELSE i.event END
               AS order_id,
           i.cause, i.instrument, i.side, i.qty, i.price, i.type, i.tif,
           NULL::smallint AS state, NULL::smallint AS reason,
           jsonb_build_object('strategy', i.strategy, 'ts_recv', i.ts_recv) AS metadata
    FROM hftpipe.intent i
    UNION ALL
    SELECT v.run, v.ts, v.stream, v.seq,
           CASE WHEN v.reason = 0 THEN 'risk.approved' ELSE 'risk.denied' END,
           CASE WHEN i.action = 2 THEN hftpipe.event_id(i.stream, i.target) ELSE v."order" END,
           v.cause, v.instrument, i.side, i.qty, i.price, i.type, i.tif, NULL, v.reason,
           jsonb_build_object('reference', hftpipe.nano(v.reference), 'limit', v."limit",
                              'value', v.value, 'halt_epoch', v.halt_epoch)
    FROM hftpipe.verdict v
    LEFT JOIN hftpipe.intent i ON i.run = v.run AND i.stream = hftpipe.event_stream(v."order")
                              AND i.seq = hftpipe.event_seq(v."order")
    UNION ALL
    SELECT e.run, e.ts, e.stream, e.seq, 'order.' || hftpipe.label_of('order_event', e.kind),
           e."order", e.cause, e.instrument, e.side, e.qty, e.price, e.type, i.tif, e.state,
           e.reason, jsonb_build_object('cum_qty', hftpipe.nano(e.cum_qty))
    FROM hftpipe.order_event e
    LEFT JOIN hftpipe.intent i ON i.run = e.run AND i.stream = hftpipe.event_stream(e."order")
                              AND i.seq = hftpipe.event_seq(e."order")
    UNION ALL
    SELECT u.run, u.ts, u.stream, u.seq, 'venue.' || hftpipe.label_of('order_event', u.kind),
           u."order", u.cause, u.instrument, u.side, u.qty, u.price, NULL, NULL, NULL, NULL,
           jsonb_build_object('execution_id', hftpipe.uuid_of(u.execution, u.execution_low),
                              'venue_order_id', hftpipe.uuid_of(u.venue_id, u.venue_id_low),
                              'venue_at', hftpipe.utc(nullif(u.ts_venue, 0)),
                              'cum_qty', hftpipe.nano(u.cum_qty),
                              'position_qty', hftpipe.nano(u.position_qty))
    FROM hftpipe.update_event u WHERE u."order" <> 0
    UNION ALL
    SELECT x.of_run, x.ts + n.utc_offset - o.utc_offset, x.stream, x.seq,
           'recovery.' || hftpipe.label_of('order_event', x.kind), x."order", NULL, i.instrument,
           x.side, x.qty, x.price, i.type, i.tif, x.state, x.reason,
           jsonb_build_object('cum_qty', hftpipe.nano(x.cum_qty), 'found_by_run', to_hex(x.run),
                              'execution_id', hftpipe.uuid_of(x.execution, x.execution_low),
                              'venue_order_id', hftpipe.uuid_of(x.venue_id, x.venue_id_low))
    FROM hftpipe.resolution x
    JOIN hftpipe.run o ON o.run = x.of_run
    JOIN hftpipe.run n ON n.run = x.run
    LEFT JOIN hftpipe.intent i ON i.run = x.of_run AND i.stream = hftpipe.event_stream(x."order")
                              AND i.seq = hftpipe.event_seq(x."order")
) a
JOIN hftpipe.run r ON r.run = a.run
LEFT JOIN hftpipe.instrument s ON s.run = a.run AND s.index = a.instrument;
COMMENT ON VIEW hftpipe.order_audit_trail IS 'Everything that happened to each order, from wish to last word: who said what, when.';

CREATE VIEW hftpipe.order_latency AS
SELECT i.run, i.event AS order_id,
       hftpipe.client_order_id(i.run, i.event) AS client_order_id, s.symbol,
       i.ts_recv, m.ts AS ts_feed, nullif(i.aux, 0) AS ts_book, i.ts AS ts_signal,
       v.ts AS ts_risk, e.sent AS ts_sent, e.acked AS ts_ack, e.filled AS ts_fill,
       m.ts - i.ts_recv AS feed_ns,
       nullif(i.aux, 0) - m.ts AS book_ns,
       i.ts - nullif(i.aux, 0) AS signal_ns,
       v.ts - i.ts AS risk_ns,
       e.sent - v.ts AS gateway_ns,
       e.sent - i.ts_recv AS tick_to_order_ns,
       e.acked - e.sent AS order_to_ack_ns,
       e.filled - e.sent AS order_to_fill_ns
FROM hftpipe.intent i
LEFT JOIN hftpipe.instrument s ON s.run = i.run AND s.index = i.instrument
LEFT JOIN hftpipe.market_event m ON m.run = i.run AND m.stream = hftpipe.event_stream(i.cause)
                                AND m.seq = hftpipe.event_seq(i.cause)
LEFT JOIN LATERAL (
    SELECT v.ts FROM hftpipe.verdict v
    WHERE v.run = i.run AND v."order" = i.event ORDER BY v.seq LIMIT 1) v ON true
LEFT JOIN LATERAL (
    SELECT min(e.ts) FILTER (WHERE e.kind = 3) AS sent,
           min(e.ts) FILTER (WHERE e.kind = 4) AS acked,
           min(e.ts) FILTER (WHERE e.kind IN (5, 6)) AS filled
    FROM hftpipe.order_event e WHERE e.run = i.run AND e."order" = i.event) e ON true
WHERE i.action = 1;
COMMENT ON VIEW hftpipe.order_latency IS 'Hop times of each order, monotonic ns, and the differences: frame read, market record, book, intent, verdict, sent, acknowledged, first fill.';

CREATE VIEW hftpipe.best_execution AS
SELECT b.run, b.order_id, b.client_order_id, b.symbol, b.side, b.order_type, b.quantity,
       b.limit_price, b.quoted_at, b.quote_age_ns, b.bid, b.bid_quantity, b.ask, b.ask_quantity,
       (b.bid + b.ask) / 2 AS mid,
       b.expected_price,
       b.quantity <= b.touch_quantity AS touch_had_it,
       b.submitted_at, b.status, b.filled_quantity, b.realised_price,
       round(b.sign * (b.realised_price - b.expected_price) / nullif(b.expected_price, 0) * 10000,
             4) AS slippage_bps,
       round(b.sign * (b.realised_price - (b.bid + b.ask) / 2) / nullif((b.bid + b.ask) / 2, 0)
             * 10000, 4) AS to_mid_bps,
       b.sent_to_fill_ns
FROM (
    SELECT o.run, o.order_id, o.client_order_id, o.symbol, o.side, o.order_type, o.quantity,
           o.limit_price, i.side AS sign,
           CASE WHEN i.quoted <> 0 THEN hftpipe.utc(i.quoted + r.utc_offset) END AS quoted_at,
           CASE WHEN i.quoted <> 0 THEN l.ts_sent - i.quoted END AS quote_age_ns,
           CASE WHEN i.bid > 0 THEN hftpipe.nano(i.bid) END AS bid,
           CASE WHEN i.bid > 0 THEN hftpipe.nano(i.bid_qty) END AS bid_quantity,
           CASE WHEN i.ask > 0 THEN hftpipe.nano(i.ask) END AS ask,
           CASE WHEN i.ask > 0 THEN hftpipe.nano(i.ask_qty) END AS ask_quantity,
           hftpipe.nano(CASE WHEN i.side > 0 THEN i.ask_qty ELSE i.bid_qty END)
               AS touch_quantity,
           -- What waits for a trigger is expected there, a limit at its price or better, the
           -- rest at the other side of the quote.
           hftpipe.nano(nullif(CASE
               WHEN i.type IN (3, 4) THEN i.stop
               WHEN i.type = 5 THEN 0
               WHEN i.type = 2 AND i.side > 0 AND (i.ask = 0 OR i.price < i.ask) THEN i.price
               WHEN i.type = 2 AND i.side < 0 AND i.price > i.bid THEN i.price
               WHEN i.side > 0 THEN i.ask ELSE i.bid END, 0)) AS expected_price,
           o.submitted_at, o.status, o.filled_quantity, o.filled_avg_price AS realised_price,
           l.order_to_fill_ns AS sent_to_fill_ns
    FROM hftpipe.orders o
    JOIN hftpipe.intent i ON i.run = o.run AND i.event = o.order_id
    JOIN hftpipe.order_latency l ON l.run = o.run AND l.order_id = o.order_id
    JOIN hftpipe.run r ON r.run = o.run
    WHERE l.ts_sent IS NOT NULL OR o.filled_quantity > 0) b;
COMMENT ON VIEW hftpipe.best_execution IS 'Each order that was sent: the quote it was decided on and its age when it left, the price to be expected of it, what it got, and the difference (above 0 = worse).';

CREATE VIEW hftpipe.latency_by_hop AS
SELECT l.run, h.hop, count(h.ns) AS count, min(h.ns) AS min,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY h.ns) AS p50,
       percentile_disc(0.99) WITHIN GROUP (ORDER BY h.ns) AS p99,
       percentile_disc(0.999) WITHIN GROUP (ORDER BY h.ns) AS p999,
       max(h.ns) AS max
FROM hftpipe.order_latency l
CROSS JOIN LATERAL (VALUES
    (1, 'feed', l.feed_ns), (2, 'book', l.book_ns), (3, 'signal', l.signal_ns),
    (4, 'risk', l.risk_ns), (5, 'gateway', l.gateway_ns),
    (6, 'tick_to_order', l.tick_to_order_ns), (7, 'order_to_ack', l.order_to_ack_ns),
    (8, 'order_to_fill', l.order_to_fill_ns)) h(place, hop, ns)
WHERE h.ns IS NOT NULL
GROUP BY l.run, h.place, h.hop
ORDER BY l.run, h.place;
COMMENT ON VIEW hftpipe.latency_by_hop IS 'Percentiles of each hop over the orders of a run, ns.';

-- ------------------------------------------------------------------ positions and P&L

CREATE FUNCTION hftpipe.date_of(day bigint) RETURNS date
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN date '1970-01-01' + day::integer;
COMMENT ON FUNCTION hftpipe.date_of IS 'Date of a trading day counted from 1970.';

CREATE VIEW hftpipe.position_snapshots AS
SELECT p.run, p.seq, hftpipe.utc(p.ts + r.utc_offset) AS snapshot_time, s.symbol, p.instrument,
       hftpipe.nano(p.qty) AS quantity,
       CASE WHEN p.qty > 0 THEN 'long' WHEN p.qty < 0 THEN 'short' ELSE 'flat' END AS side,
       hftpipe.nano(p.average) AS average_price,
       hftpipe.nano(nullif(p.mark, 0)) AS mark_price,
       hftpipe.nano(p.qty) * hftpipe.nano(p.mark) - hftpipe.nano(p.unrealised) AS cost_basis,
       hftpipe.nano(p.qty) * hftpipe.nano(p.mark) AS market_value,
       hftpipe.nano(p.realised) AS realised_pnl,
       hftpipe.nano(p.unrealised) AS unrealised_pnl,
       hftpipe.nano(p.fees) AS fees,
       hftpipe.nano(p.day_pnl) AS day_pnl
FROM hftpipe.position_event p
JOIN hftpipe.run r ON r.run = p.run
LEFT JOIN hftpipe.instrument s ON s.run = p.run AND s.index = p.instrument;
COMMENT ON VIEW hftpipe.position_snapshots IS 'Every position the ledger published.';

CREATE VIEW hftpipe.positions AS
SELECT i.run, i.symbol, p.quantity, p.side, p.average_price, p.mark_price, p.cost_basis,
       p.market_value, p.realised_pnl, p.unrealised_pnl, p.fees, p.snapshot_time AS updated_at,
       p.seq
FROM hftpipe.instrument i
CROSS JOIN LATERAL (
    SELECT * FROM hftpipe.position_snapshots p
    WHERE p.run = i.run AND p.instrument = i.index ORDER BY p.seq DESC LIMIT 1) p;
COMMENT ON VIEW hftpipe.positions IS 'Newest position of each instrument a run has traded. P&L is before fees.';

CREATE VIEW hftpipe.account_snapshots AS
SELECT p.run, p.seq, hftpipe.utc(p.ts + r.utc_offset) AS snapshot_time,
       hftpipe.date_of(p.day) AS trading_date,
       hftpipe.nano(p.cash) AS cash, hftpipe.nano(p.equity) AS equity,
       hftpipe.nano(p.peak) AS peak_equity,
       hftpipe.nano(p.peak) - hftpipe.nano(p.equity) AS drawdown, p.drawdown_bps,
       hftpipe.nano(p.day_pnl) AS day_pnl, hftpipe.nano(p.day_realised) AS day_realised,
       hftpipe.nano(p.day_fees) AS day_fees
FROM hftpipe.position_event p
JOIN hftpipe.run r ON r.run = p.run;
COMMENT ON VIEW hftpipe.account_snapshots IS 'Cash, equity and drawdown at everything the ledger published.';

CREATE VIEW hftpipe.daily_pnl AS
WITH close AS (
    SELECT DISTINCT ON (run, day) run, day, day_pnl, day_realised, day_fees
    FROM hftpipe.position_event ORDER BY run, day, seq DESC
), step AS (
    SELECT p.run, p.day, p.cause,
           p.realised - coalesce(lag(p.realised) OVER w, o.realised, 0) AS gained
    FROM hftpipe.position_event p
    LEFT JOIN hftpipe.opening o ON o.run = p.run AND o.stream = p.stream
                               AND o.instrument = p.instrument
    WINDOW w AS (PARTITION BY p.run, p.instrument ORDER BY p.seq)
), trade AS (
    SELECT run, day, count(*) AS trades, count(*) FILTER (WHERE gained > 0) AS winning,
           count(*) FILTER (WHERE gained < 0) AS losing
    FROM step WHERE hftpipe.event_stream(cause) = 5 GROUP BY run, day
)
SELECT c.run, hftpipe.date_of(c.day) AS trading_date,
       hftpipe.nano(c.day_realised) AS realised,
       hftpipe.nano(c.day_pnl) - hftpipe.nano(c.day_realised) + hftpipe.nano(c.day_fees)
           AS unrealised,
       hftpipe.nano(c.day_fees) AS fees, hftpipe.nano(c.day_pnl) AS total,
       coalesce(t.trades, 0) AS trade_count, coalesce(t.winning, 0) AS winning,
       coalesce(t.losing, 0) AS losing
FROM close c
LEFT JOIN trade t USING (run, day);
COMMENT ON VIEW hftpipe.daily_pnl IS 'P&L by run and trading day, as the ledger closed it; a run goes on with the day of the one before: realised before fees, unrealised = the day''s change of it, total = realised + unrealised - fees. trade_count counts executions, winning and losing those of them that realised a gain or a loss before fees.';

-- ------------------------------------------------------------------ risk

CREATE VIEW hftpipe.risk_events AS
SELECT a.run, a.stream, a.seq, a.event_type, a.severity, a.message,
       hftpipe.utc(a.ts + r.utc_offset) AS occurred_at, a.ts, s.symbol,
       hftpipe.label_of('reason', nullif(a.reason, 0::smallint)) AS reason,
       a.order_id, hftpipe.client_order_id(a.run, a.order_id) AS client_order_id,
       a."limit", a.value, a.cause
FROM (
    SELECT e.run, e.stream, e.seq, e.ts, e.instrument, e.reason, e."limit", e.value, e.cause,
           hftpipe.label_of('risk_event', e.kind) AS event_type,
           CASE e.kind WHEN 1 THEN 'critical' WHEN 3 THEN 'error' WHEN 4 THEN 'error'
                       ELSE 'info' END AS severity,
           format('halt epoch %s, armed epoch %s', e.halt_epoch, e.armed_epoch) AS message,
           NULL::bigint AS order_id
    FROM hftpipe.risk_event e
    UNION ALL
    SELECT v.run, v.stream, v.seq, v.ts, v.instrument, v.reason, v."limit", v.value, v.cause,
           'order_denied', 'warning', l.doc, v."order"
    FROM hftpipe.verdict v
    LEFT JOIN hftpipe.label l ON l.enum = 'reason' AND l.value = v.reason
    WHERE v.reason <> 0
) a
JOIN hftpipe.run r ON r.run = a.run
LEFT JOIN hftpipe.instrument s ON s.run = a.run AND s.index = a.instrument;
COMMENT ON VIEW hftpipe.risk_events IS 'What happened to the gate, and every order it refused.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_reader') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA hftpipe TO hftpipe_reader;
    END IF;
END $$;
