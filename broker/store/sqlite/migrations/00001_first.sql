-- Times are microseconds since 1970 in UTC; NULL is the zero time.

-- +goose Up
CREATE TABLE meta (
	one        INTEGER PRIMARY KEY CHECK (one = 1),
	high_water INTEGER NOT NULL,
	probes     INTEGER NOT NULL,
	log_size   INTEGER NOT NULL CHECK (log_size >= 0),
	log_rows   INTEGER NOT NULL, -- every entry up to this row is sequenced
	checkpoint BLOB
) STRICT;
INSERT INTO meta VALUES (1, 0, 0, 0, 0, NULL);

CREATE TABLE sessions (
	row               INTEGER PRIMARY KEY,
	id                TEXT NOT NULL UNIQUE CHECK (id <> ''),
	role              TEXT NOT NULL,
	project           TEXT NOT NULL,
	issuer            TEXT NOT NULL,
	job               TEXT NOT NULL,
	thumbprint        TEXT NOT NULL,
	access_hash       BLOB,
	end_hash          BLOB,
	claims            BLOB,
	policy_digest     TEXT NOT NULL,
	created_at        INTEGER NOT NULL,
	hard_end          INTEGER NOT NULL,
	heartbeat_timeout INTEGER NOT NULL CHECK (heartbeat_timeout > 0),
	deadline          INTEGER NOT NULL CHECK (deadline <= hard_end),
	graced            INTEGER NOT NULL DEFAULT 0 CHECK (graced IN (0, 1)), -- lives on a restart's grace
	ended_at          INTEGER,
	end_reason        TEXT NOT NULL
) STRICT;
CREATE INDEX sessions_end_hash ON sessions (end_hash) WHERE end_hash IS NOT NULL;
CREATE INDEX sessions_limit ON sessions (issuer, job, role) WHERE ended_at IS NULL;
CREATE INDEX sessions_due ON sessions (deadline) WHERE ended_at IS NULL;
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE leases (
	row           INTEGER PRIMARY KEY,
	id            TEXT NOT NULL UNIQUE CHECK (id <> ''),
	session       TEXT NOT NULL,
	login         TEXT NOT NULL,
	is_login      INTEGER NOT NULL CHECK (is_login IN (0, 1)),
	name          TEXT NOT NULL,
	provider      TEXT NOT NULL,
	revocability  TEXT NOT NULL,
	renewable     INTEGER NOT NULL CHECK (renewable IN (0, 1)),
	state         TEXT NOT NULL CHECK (state IN ('intent', 'issuing', 'active', 'revoking', 'expiring', 'irrevocable', 'revoked', 'expired', 'disclosed', 'void')),
	marker        TEXT NOT NULL,
	handle        BLOB,
	batch         TEXT NOT NULL,
	policy_digest TEXT NOT NULL,
	replaced_by   TEXT NOT NULL,
	created_at    INTEGER NOT NULL,
	expires_at    INTEGER,
	ends_at       INTEGER,
	dies_by       INTEGER,
	next_at       INTEGER CHECK (next_at IS NULL OR state NOT IN ('revoked', 'expired', 'disclosed', 'void')),
	attempts      INTEGER NOT NULL,
	claimed_by    TEXT NOT NULL,
	claimed_until INTEGER,
	epoch         INTEGER NOT NULL,
	-- A claim hides a row until the claim lapses.
	due_at        INTEGER GENERATED ALWAYS AS (CASE WHEN next_at IS NOT NULL THEN max(next_at, coalesce(claimed_until, next_at)) END) VIRTUAL
) STRICT;
CREATE INDEX leases_session ON leases (session);
CREATE INDEX leases_due ON leases (provider, due_at) WHERE due_at IS NOT NULL;

CREATE TABLE tokens (
	issuer     TEXT NOT NULL,
	jti        TEXT NOT NULL CHECK (jti <> ''),
	expires    INTEGER NOT NULL,
	same_job   INTEGER NOT NULL CHECK (same_job IN (0, 1)),
	job        TEXT NOT NULL,
	thumbprint TEXT NOT NULL,
	body       BLOB,
	session    TEXT NOT NULL, -- the last one made with it
	PRIMARY KEY (issuer, jti)
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_expires ON tokens (expires);

CREATE TABLE proofs (
	thumbprint TEXT NOT NULL CHECK (thumbprint <> ''),
	jti        TEXT NOT NULL CHECK (jti <> ''),
	expires    INTEGER NOT NULL,
	PRIMARY KEY (thumbprint, jti)
) STRICT, WITHOUT ROWID;
CREATE INDEX proofs_expires ON proofs (expires);

CREATE TABLE keys (
	row        INTEGER PRIMARY KEY,
	purpose    TEXT NOT NULL CHECK (purpose <> ''),
	id         TEXT NOT NULL UNIQUE CHECK (id <> ''),
	algorithm  TEXT NOT NULL,
	public     BLOB,
	sealed     BLOB,
	created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX keys_purpose ON keys (purpose, created_at);

-- Entries are only ever appended. Their place in the log stands in a narrow
-- table of its own, so that sequencing doesn't write them a second time.
CREATE TABLE entries (
	row     INTEGER PRIMARY KEY,
	event   TEXT NOT NULL,
	request TEXT NOT NULL,
	session TEXT NOT NULL,
	lease   TEXT NOT NULL,
	body    BLOB NOT NULL
) STRICT;
CREATE INDEX entries_request ON entries (request) WHERE request <> '';
CREATE INDEX entries_session ON entries (session) WHERE session <> '';
CREATE INDEX entries_lease ON entries (lease) WHERE lease <> '';

CREATE TABLE log (
	idx INTEGER PRIMARY KEY CHECK (idx >= 0),
	row INTEGER NOT NULL UNIQUE
) STRICT;

CREATE TABLE tiles (
	l    INTEGER NOT NULL,
	n    INTEGER NOT NULL,
	w    INTEGER NOT NULL,
	data BLOB NOT NULL,
	PRIMARY KEY (l, n)
) STRICT;

PRAGMA user_version = 1;
