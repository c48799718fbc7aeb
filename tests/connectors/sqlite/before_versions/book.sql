BEGIN TRANSACTION;
CREATE TABLE cycles (
    pass INTEGER, subscription_id TEXT, start INTEGER, customer TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (pass, subscription_id, start)
) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('tidegate_reconciliation',1);
CREATE TABLE passes (
    number INTEGER PRIMARY KEY, started_at INTEGER NOT NULL, ended_at INTEGER, meters BLOB NOT NULL,
    figures BLOB NOT NULL DEFAULT '{}'
);
INSERT INTO "passes" VALUES(1,1780000000000000,1780000000000000,X'7B7D',X'7B227365656E223A317D');
CREATE TABLE proved (line INTEGER PRIMARY KEY, customer TEXT NOT NULL, body BLOB NOT NULL);
INSERT INTO "proved" VALUES(1,'acme',X'7B7D');
CREATE TABLE standings (
    customer TEXT, meter TEXT, start INTEGER, end INTEGER NOT NULL, status TEXT NOT NULL, misses INTEGER NOT NULL,
    looked_at INTEGER NOT NULL, first_at INTEGER, turn INTEGER NOT NULL, findings BLOB NOT NULL,
    PRIMARY KEY (customer, meter, start)
) WITHOUT ROWID;
INSERT INTO "standings" VALUES('acme','calls',1779998400000000,1780002000000000,'suspect',1,1780000000000000,1780000000000000,1,X'5B5D');
CREATE TABLE tasks (
    pass INTEGER NOT NULL, round INTEGER NOT NULL, subscription_id TEXT NOT NULL, record BLOB NOT NULL,
    due_at INTEGER NOT NULL, outcome TEXT, suspects INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (pass, round, subscription_id)
) WITHOUT ROWID;
INSERT INTO "tasks" VALUES(1,1,'',X'6E756C6C',1780000000000000,'compared',1,'');
CREATE INDEX to_do ON tasks (round, due_at) WHERE outcome IS NULL;
CREATE INDEX listed ON standings (status) WHERE status IN ('suspect', 'drift', 'acknowledged', 'conflict');
COMMIT;
