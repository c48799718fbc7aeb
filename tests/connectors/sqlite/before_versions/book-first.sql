BEGIN TRANSACTION;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('tidegate_reconciliation',1);
CREATE TABLE passes (
    number INTEGER PRIMARY KEY, started_at INTEGER NOT NULL, ended_at INTEGER, meters BLOB NOT NULL,
    figures BLOB NOT NULL DEFAULT '{}'
);
INSERT INTO "passes" VALUES(1,5,6,X'7B7D','{}');
CREATE TABLE standings (
    customer TEXT, meter TEXT, start INTEGER, end INTEGER NOT NULL, status TEXT NOT NULL, misses INTEGER NOT NULL,
    looked_at INTEGER NOT NULL, first_at INTEGER, turn INTEGER NOT NULL, findings BLOB NOT NULL,
    PRIMARY KEY (customer, meter, start)
) WITHOUT ROWID;
INSERT INTO "standings" VALUES('acme','calls',1,2,'drift',2,5,4,1,'[]');
CREATE TABLE tasks (
    pass INTEGER NOT NULL, round INTEGER NOT NULL, subscription_id TEXT NOT NULL, record BLOB NOT NULL,
    due_at INTEGER NOT NULL, outcome TEXT, suspects INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (pass, round, subscription_id)
) WITHOUT ROWID;
CREATE INDEX to_do ON tasks (round, due_at) WHERE outcome IS NULL;
CREATE INDEX open ON standings (status) WHERE status IN ('suspect', 'drift');
COMMIT;
