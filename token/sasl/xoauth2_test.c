//go:build ignore

/*
 * Drives the plugin through libsasl2's client API, as Postfix does. libsasl2
 * finds the plugin by SASL_PATH, which the caller sets; sasl_test.go builds
 * and runs this, plainly and under valgrind.
 *
 * Prints "ok NAME" or "FAIL NAME: what" for each case.
 */

#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sasl/sasl.h>
#include <sasl/saslutil.h>

/* The test vector of Microsoft's documentation. */
#define USER "test@contoso.onmicrosoft.com"
#define TOKEN "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA"
#define VECTOR                                                               \
    "dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFB" \
    "bDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="
#define CHALLENGE                                                            \
    "{\"status\":\"401\",\"schemes\":\"bearer\",\"scope\":\"mail\"}"
#define GARLIC "RUxBU1RJQ0dBUkxJQw" /* in all tokens that must not be seen */

static const char *current = "";
static int failures;
static int cases;
static int failed;
static int unwiped; /* blocks freed with a token inside */
static char logged[65536];

#define CHECK(ok, ...)                                                       \
    do {                                                                     \
	if (!(ok)) {                                                         \
	    failed = 1;                                                      \
	    printf("FAIL %s: ", current);                                    \
	    printf(__VA_ARGS__);                                             \
	    printf("\n");                                                    \
	}                                                                    \
    } while (0)

/*
 * libsasl2's memory goes through these, so that a block given back with a
 * token in it is noticed. The size stands in front of the block.
 */
union header {
    size_t size;
    max_align_t align;
};

static void *noting_calloc(size_t n, size_t size)
{
    union header *h = calloc(1, sizeof(*h) + n * size);
    if (h == NULL)
	return NULL;
    h->size = n * size;
    return h + 1;
}

static void *noting_malloc(size_t size)
{
    return noting_calloc(1, size);
}

static void noting_free(void *block)
{
    if (block == NULL)
	return;
    union header *h = (union header *) block - 1;
    if (memmem(block, h->size, TOKEN, strlen(TOKEN)) != NULL ||
	memmem(block, h->size, GARLIC, strlen(GARLIC)) != NULL)
	unwiped++;
    free(h);
}

static void *noting_realloc(void *block, size_t size)
{
    void *larger = noting_malloc(size);
    if (larger == NULL || block == NULL)
	return larger;
    union header *h = (union header *) block - 1;
    memcpy(larger, block, h->size < size ? h->size : size);
    noting_free(block);
    return larger;
}

/* What the callbacks of one case answer. */
struct answers {
    const char *authname;
    unsigned authname_len; /* 0: the callback does not tell */
    const char *user;
    const char *token; /* NULL: cancelled */
    size_t token_len;  /* 0: strlen(token) */
};

static sasl_secret_t *secret;

static int answer_name(void *context, int id, const char **result,
		       unsigned *len)
{
    const struct answers *a = context;
    *result = id == SASL_CB_AUTHNAME ? a->authname : a->user;
    if (len != NULL && id == SASL_CB_AUTHNAME && a->authname_len > 0)
	*len = a->authname_len;
    return SASL_OK;
}

static int answer_token(sasl_conn_t *conn, void *context, int id,
			sasl_secret_t **psecret)
{
    const struct answers *a = context;
    (void) conn;
    (void) id;
    free(secret);
    secret = NULL;
    *psecret = NULL;
    if (a->token == NULL)
	return SASL_OK;
    size_t len = a->token_len ? a->token_len : strlen(a->token);
    secret = malloc(sizeof(*secret) + len);
    if (secret == NULL)
	return SASL_NOMEM;
    secret->len = len;
    memcpy(secret->data, a->token, len);
    *psecret = secret;
    return SASL_OK;
}

static int collect_log(void *context, int level, const char *message)
{
    (void) context;
    (void) level;
    strncat(logged, message, sizeof(logged) - strlen(logged) - 1);
    return SASL_OK;
}

/*
 * start opens a connection, starts XOAUTH2 and answers the server's empty
 * challenge. have says which callbacks the application offers: "a"uthname,
 * "u"ser, "p"ass.
 */
static int start(sasl_conn_t **conn, struct answers *a, const char *have,
		 unsigned security, const char *challenge, const char **out,
		 unsigned *outlen)
{
    static sasl_callback_t callbacks[4];
    size_t n = 0;
    if (strchr(have, 'a'))
	callbacks[n++] = (sasl_callback_t){
	    SASL_CB_AUTHNAME, (int (*)(void)) (void (*)(void)) answer_name, a};
    if (strchr(have, 'u'))
	callbacks[n++] = (sasl_callback_t){
	    SASL_CB_USER, (int (*)(void)) (void (*)(void)) answer_name, a};
    if (strchr(have, 'p'))
	callbacks[n++] = (sasl_callback_t){
	    SASL_CB_PASS, (int (*)(void)) (void (*)(void)) answer_token, a};
    callbacks[n] = (sasl_callback_t){SASL_CB_LIST_END, NULL, NULL};

    const char *mech = NULL;
    logged[0] = '\0';
    int result = sasl_client_new("smtp", "smtp.office365.com", NULL, NULL,
				 callbacks, 0, conn);
    if (result != SASL_OK)
	return result;
    sasl_security_properties_t props = {.security_flags = security};
    result = sasl_setprop(*conn, SASL_SEC_PROPS, &props);
    if (result != SASL_OK)
	return result;
    result = sasl_client_start(*conn, "XOAUTH2", NULL, out, outlen, &mech);
    if (result != SASL_CONTINUE)
	return result;
    /* Postfix would log it, should the server misbehave. */
    CHECK(*outlen == 0, "%u bytes came out before the challenge", *outlen);
    return sasl_client_step(*conn, challenge, (unsigned) strlen(challenge),
			    NULL, out, outlen);
}

static void begin(const char *name)
{
    current = name;
    failed = 0;
    unwiped = 0;
    cases++;
}

/* end closes the case; by then no token may have been left in freed memory. */
static void end(sasl_conn_t **conn)
{
    sasl_dispose(conn);
    CHECK(unwiped == 0, "%d blocks were freed with the token inside", unwiped);
    CHECK(strstr(logged, GARLIC) == NULL, "the log holds the token");
    free(secret);
    secret = NULL;
    if (failed)
	failures++;
    else
	printf("ok %s\n", current);
}

static void want_response(const char *out, unsigned outlen, const char *want)
{
    char encoded[1024] = "";
    unsigned len;
    CHECK(sasl_encode64(out, outlen, encoded, sizeof encoded, &len) == SASL_OK,
	  "cannot encode %u bytes", outlen);
    CHECK(strcmp(encoded, want) == 0, "got response %s, want %s", encoded,
	  want);
}

static const unsigned as_postfix = SASL_SEC_NOANONYMOUS;

static void test_accepted(void)
{
    struct answers a = {.authname = USER, .token = TOKEN};
    sasl_conn_t *conn = NULL;
    const char *out = NULL;
    unsigned len = 0;

    begin("a server that is content");
    int got = start(&conn, &a, "ap", as_postfix, "", &out, &len);
    CHECK(got == SASL_CONTINUE, "start: got %d, want CONTINUE", got);
    want_response(out, len, VECTOR);
    got = sasl_client_step(conn, NULL, 0, NULL, &out, &len);
    CHECK(got == SASL_OK && len == 0, "step: got %d, %u bytes", got, len);
    const void *name = NULL;
    got = sasl_getprop(conn, SASL_USERNAME, &name);
    CHECK(got == SASL_OK && strcmp(name, USER) == 0, "user: got %d", got);
    end(&conn);
}

static void test_challenges(void)
{
    struct answers a = {.authname = USER, .token = TOKEN};
    sasl_conn_t *conn = NULL;
    const char *out = NULL;
    unsigned len = 0;

    begin("one challenge is answered, the second refused");
    int got = start(&conn, &a, "ap", as_postfix, "", &out, &len);
    CHECK(got == SASL_CONTINUE, "start: got %d, want CONTINUE", got);
    got = sasl_client_step(conn, CHALLENGE, strlen(CHALLENGE), NULL, &out,
			   &len);
    CHECK(got == SASL_CONTINUE && out != NULL && len == 0,
	  "first challenge: got %d, %u bytes, want CONTINUE, none", got, len);
    got = sasl_client_step(conn, CHALLENGE, strlen(CHALLENGE), NULL, &out,
			   &len);
    CHECK(got == SASL_BADPROT && len == 0,
	  "second challenge: got %d, %u bytes, want BADPROT, none", got, len);
    CHECK(strstr(sasl_errdetail(conn), "second challenge"), "detail: %s",
	  sasl_errdetail(conn));
    end(&conn);
}

static void test_early_challenge(void)
{
    struct answers a = {.authname = USER, .token = TOKEN};
    sasl_conn_t *conn = NULL;
    const char *out = NULL;
    unsigned len = 0;

    begin("a challenge before the token");
    int got = start(&conn, &a, "ap", as_postfix, CHALLENGE, &out, &len);
    CHECK(got == SASL_BADPROT && len == 0,
	  "got %d, %u bytes, want BADPROT, none", got, len);
    CHECK(strstr(logged, "before it had seen the token"), "log: %s", logged);
    end(&conn);
}

/* Names come by AUTHNAME, else by USER; blanks around them do not count. */
static void test_names(void)
{
    static const struct {
	const char *name, *have;
	struct answers a;
    } rows[] = {
	{"authname comes first", "aup",
	 {.authname = USER, .user = "other@contoso.com", .token = TOKEN}},
	{"authname with its length", "ap",
	 {.authname = USER, .authname_len = sizeof(USER) - 1, .token = TOKEN}},
	{"no authname callback", "up", {.user = USER, .token = TOKEN}},
	{"authname cancelled", "aup", {.user = USER, .token = TOKEN}},
	{"authname empty", "aup",
	 {.authname = "", .user = USER, .token = TOKEN}},
	{"blanks around the name", "ap",
	 {.authname = " " USER " ", .token = TOKEN}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
	struct answers a = rows[i].a;
	sasl_conn_t *conn = NULL;
	const char *out = NULL;
	unsigned len = 0;
	begin(rows[i].name);
	int got = start(&conn, &a, rows[i].have, as_postfix, "", &out, &len);
	CHECK(got == SASL_CONTINUE, "got %d, want CONTINUE", got);
	want_response(out, len, VECTOR);
	end(&conn);
    }
}

static char long_name[322];
static char long_token[65536];
static char full_token[65536];

static void test_refusals(void)
{
    const struct {
	const char *name, *have;
	struct answers a;
	int want;
	const char *detail;
    } rows[] = {
	{"no name", "aup", {.token = GARLIC}, SASL_BADPARAM, "no user name"},
	{"no name callback", "p", {.token = GARLIC}, SASL_BADPARAM,
	 "no user name"},
	{"a name of blanks", "ap", {.authname = "  ", .token = GARLIC},
	 SASL_BADPARAM, "user name is empty"},
	{"a name with ^A", "ap",
	 {.authname = "a\001auth=x", .token = GARLIC}, SASL_BADPARAM,
	 "control character"},
	{"a name with a line end", "ap",
	 {.authname = "a\nb@contoso.com", .token = GARLIC}, SASL_BADPARAM,
	 "control character"},
	{"a name with NUL", "ap",
	 {.authname = "a@b\0c", .authname_len = 5, .token = GARLIC},
	 SASL_BADPARAM, "NUL byte"},
	{"a name too long", "ap", {.authname = long_name, .token = GARLIC},
	 SASL_BADPARAM, "user name is too long"},
	{"no token callback", "a", {.authname = USER}, SASL_NOMECH, ""},
	{"token cancelled", "ap", {.authname = USER}, SASL_BADPARAM,
	 "no access token"},
	{"token empty", "ap", {.authname = USER, .token = ""}, SASL_BADPARAM,
	 "no access token"},
	{"token with ^A", "ap", {.authname = USER, .token = GARLIC "\001x"},
	 SASL_BADPARAM, "byte that no token has"},
	{"token with NUL", "ap",
	 {.authname = USER, .token = GARLIC "\0x", .token_len = 20},
	 SASL_BADPARAM, "byte that no token has"},
	{"token with a line end", "ap",
	 {.authname = USER, .token = GARLIC "\n"}, SASL_BADPARAM,
	 "byte that no token has"},
	{"token not ASCII", "ap",
	 {.authname = USER, .token = GARLIC "\xc3\xa4"}, SASL_BADPARAM,
	 "byte that no token has"},
	{"token too long", "ap", {.authname = USER, .token = long_token},
	 SASL_BADPARAM, "too long"},
	{"name and token together one byte too long", "ap",
	 {.authname = USER "x", .token = full_token}, SASL_BADPARAM,
	 "too long"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
	struct answers a = rows[i].a;
	sasl_conn_t *conn = NULL;
	const char *out = NULL;
	unsigned len = 0;
	begin(rows[i].name);
	int got = start(&conn, &a, rows[i].have, as_postfix, "", &out, &len);
	const char *detail = sasl_errdetail(conn);
	CHECK(got == rows[i].want, "got %d (%s), want %d", got, detail,
	      rows[i].want);
	CHECK(len == 0, "%u bytes came out", len);
	CHECK(strstr(detail, rows[i].detail), "detail: got %s, want %s", detail,
	      rows[i].detail);
	/* Postfix shows its log, not the detail. */
	CHECK(strstr(logged, rows[i].detail), "log: got %s, want %s", logged,
	      rows[i].detail);
	CHECK(strstr(detail, GARLIC) == NULL, "the detail holds the token");
	end(&conn);
    }
}

static void test_longest(void)
{
    struct answers a = {.authname = USER, .token = full_token};
    sasl_conn_t *conn = NULL;
    const char *out = NULL;
    unsigned len = 0;

    begin("the longest response");
    int got = start(&conn, &a, "ap", as_postfix, "", &out, &len);
    CHECK(got == SASL_CONTINUE, "got %d, want CONTINUE", got);
    CHECK(len == 65536, "got %u bytes, want 65536", len);
    end(&conn);
}

/* Who can read the line can use the token: that is plain text. */
static void test_noplaintext(void)
{
    struct answers a = {.authname = USER, .token = TOKEN};
    sasl_conn_t *conn = NULL;
    const char *out = NULL;
    unsigned len = 0;

    begin("not offered where plain text is refused");
    int got = start(&conn, &a, "ap", SASL_SEC_NOPLAINTEXT, "", &out, &len);
    CHECK(got == SASL_NOMECH, "got %d, want NOMECH", got);
    end(&conn);
}

int main(void)
{
    static const sasl_callback_t callbacks[] = {
	{SASL_CB_LOG, (int (*)(void)) (void (*)(void)) collect_log, NULL},
	{SASL_CB_LIST_END, NULL, NULL},
    };
    /* "user=" + USER + "^Aauth=Bearer " + token + "^A^A" = 65536 bytes */
    const size_t full = 65536 - 5 - strlen(USER) - 13 - 2;

    memset(long_name, 'x', sizeof(long_name) - 1);
    memset(long_token, 'x', sizeof(long_token) - 1);
    memset(full_token, 'x', full);
    memcpy(long_token, GARLIC, strlen(GARLIC));
    memcpy(full_token, GARLIC, strlen(GARLIC));
    setvbuf(stdout, NULL, _IOLBF, 0);
    sasl_set_alloc(noting_malloc, noting_calloc, noting_realloc, noting_free);
    if (sasl_client_init(callbacks) != SASL_OK) {
	printf("FAIL sasl_client_init: %s\n", logged);
	return 1;
    }
    test_accepted();
    test_challenges();
    test_early_challenge();
    test_names();
    test_refusals();
    test_longest();
    test_noplaintext();
    sasl_client_done();
    printf("%d cases, %d failed\n", cases, failures);
    return failures > 0;
}
