-- The registry: the contract between the Dovecot plugin, which records registrations, and the daemon, which
-- creates this file, pushes, and forgets what Apple says is gone. The plugin never creates anything.
-- Raise user_version with every change that the other side has to know of. The plugin reads it at each login from the
-- first bytes of this file, so a checkpoint has to follow.

CREATE TABLE device (                  -- a phone's registration of one mail account
  id            INTEGER PRIMARY KEY,
  username      TEXT NOT NULL,         -- as Dovecot knows the user
  account_id    TEXT NOT NULL,         -- aps-account-id, upper case
  device_token  TEXT NOT NULL,         -- hex, lower case; a secret: never logged whole
  subtopic      TEXT NOT NULL,
  topic         TEXT NOT NULL,         -- the topic that the phone was told
  version       INTEGER NOT NULL,      -- aps-version answered: 1 knows only INBOX
  registered_at INTEGER NOT NULL,      -- unix time, ms
  suspended     TEXT,                  -- why it is not pushed to; the plugin sets NULL at each registration
  accepted_at   INTEGER,               -- unix time, ms, of Apple's last 200; the daemon's alone, as is the next
  outcome       TEXT,                  -- Apple's last answer, such as "200" or "400 BadDeviceToken"
  UNIQUE (username, account_id, device_token)  -- two phones restored from one backup share an account_id
);
CREATE INDEX device_registered_at ON device (registered_at);

CREATE TABLE mailbox (                 -- what the phone asked for and was echoed
  device_id INTEGER NOT NULL REFERENCES device ON DELETE CASCADE,
  name      TEXT NOT NULL,             -- UTF-8, as echoed
  path      TEXT NOT NULL,             -- the directory that holds new/ and cur/, from Dovecot itself
  PRIMARY KEY (device_id, name)
) WITHOUT ROWID;
CREATE INDEX mailbox_path ON mailbox (path);

CREATE TABLE setting (                 -- topic (daemon → plugin; no row or '' means none; also in a file beside this
                                       -- one, named …-topic, empty means none), caught_up_to, …
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

PRAGMA user_version = 1;
