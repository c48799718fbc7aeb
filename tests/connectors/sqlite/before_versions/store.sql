BEGIN TRANSACTION;
CREATE TABLE catalogs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT, applied_at INTEGER, origin TEXT, author TEXT, note TEXT
);
INSERT INTO "catalogs" VALUES(1,'meters: []
',1780000000000000,'cli','me','');
CREATE TABLE control (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, body BLOB);
CREATE TABLE counters (shard INTEGER, name TEXT, value INTEGER, PRIMARY KEY (shard, name)) WITHOUT ROWID;
INSERT INTO "counters" VALUES(0,'events',1);
CREATE TABLE feed (seq INTEGER PRIMARY KEY, bytes_so_far INTEGER, customers TEXT);
INSERT INTO "feed" VALUES(1,8,'["acme"]');
CREATE TABLE heartbeats (shard INTEGER PRIMARY KEY, body BLOB);
INSERT INTO "heartbeats" VALUES(0,X'7B227368617264223A302C22736861726473223A312C2270726F63657373223A2230222C227772697474656E5F6174223A312C22636F756E7465645F756E74696C223A312C22706F736974696F6E73223A7B7D2C22626568696E64223A6E756C6C2C22656E646564223A747275657D');
CREATE TABLE held (customer TEXT, meter TEXT, quantity TEXT, PRIMARY KEY (customer, meter)) WITHOUT ROWID;
CREATE TABLE holds (
    n INTEGER PRIMARY KEY AUTOINCREMENT, identity BLOB UNIQUE, customer TEXT, state INTEGER, asked TEXT,
    quantities TEXT, until INTEGER
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO "meta" VALUES('control_generation','0123456789abcdef');
INSERT INTO "meta" VALUES('memo_memo',X'78');
INSERT INTO "meta" VALUES('tidegate_schema',4);
CREATE TABLE notes (
    seq INTEGER PRIMARY KEY, kind TEXT, id TEXT, customer TEXT, at INTEGER, body BLOB, UNIQUE (kind, id)
);
INSERT INTO "notes" VALUES(1,'alert','n1','acme',1780000000000000,X'7B7D');
CREATE TABLE packed_00 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_01 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
INSERT INTO "packed_01" VALUES('acme','period',1779998400000000,'[["calls",86400000000,5,1,0]]',1780000000000000);
CREATE TABLE packed_02 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_03 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_04 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_05 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_06 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_07 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_08 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_09 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_10 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_11 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_12 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_13 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_14 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE TABLE packed_15 (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY (customer, window, start)
    ) WITHOUT ROWID;
CREATE VIEW totals_00 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_00, json_each(body) AS entry;
CREATE VIEW totals_01 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_01, json_each(body) AS entry;
CREATE VIEW totals_02 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_02, json_each(body) AS entry;
CREATE VIEW totals_03 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_03, json_each(body) AS entry;
CREATE VIEW totals_04 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_04, json_each(body) AS entry;
CREATE VIEW totals_05 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_05, json_each(body) AS entry;
CREATE VIEW totals_06 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_06, json_each(body) AS entry;
CREATE VIEW totals_07 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_07, json_each(body) AS entry;
CREATE VIEW totals_08 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_08, json_each(body) AS entry;
CREATE VIEW totals_09 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_09, json_each(body) AS entry;
CREATE VIEW totals_10 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_10, json_each(body) AS entry;
CREATE VIEW totals_11 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_11, json_each(body) AS entry;
CREATE VIEW totals_12 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_12, json_each(body) AS entry;
CREATE VIEW totals_13 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_13, json_each(body) AS entry;
CREATE VIEW totals_14 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_14, json_each(body) AS entry;
CREATE VIEW totals_15 AS SELECT
        customer, window, json_extract(entry.value, '$[0]') AS meter, start, start + json_extract(entry.value, '$[1]') AS "end", json_extract(entry.value, '$[2]') AS total,
        json_extract(entry.value, '$[3]') AS version, coalesce(json_extract(entry.value, '$[5]'), json_extract(entry.value, '$[3]')) AS events, start + json_extract(entry.value, '$[4]') AS as_of,
        coalesce(json_extract(entry.value, '$[6]'), 0) AS late,
        coalesce(json_extract(entry.value, '$[7]'), 0) AS corrected, coalesce(json_extract(entry.value, '$[8]'), 0) AS adjustment, coalesce(json_extract(entry.value, '$[9]'), 1) AS steady,
        written_at FROM packed_15, json_each(body) AS entry;
CREATE INDEX notes_by_time ON notes (kind, at);
CREATE INDEX notes_by_customer ON notes (kind, customer, at);
CREATE INDEX holds_open ON holds (customer, until) WHERE state < 2;
CREATE INDEX holds_waiting ON holds (state) WHERE state < 5;
CREATE INDEX holds_until ON holds (until);
CREATE VIEW usage AS SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_00 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_01 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_02 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_03 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_04 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_05 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_06 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_07 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_08 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_09 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_10 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_11 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_12 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_13 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_14 UNION ALL SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM totals_15;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('catalogs',1);
COMMIT;
