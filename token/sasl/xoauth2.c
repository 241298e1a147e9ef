//go:build ignore

/*
 * A client-only Cyrus SASL plugin for the mechanism XOAUTH2.
 *
 * The password that the application hands over *is* the access token; this
 * plugin opens no file and no connection. Postfix's smtp(8) gets user and
 * token from smtp_sasl_password_maps and loads the plugin before it enters its
 * chroot. Who gets a token, and when, is decided elsewhere.
 *
 * The exchange (Microsoft: "Authenticate an IMAP, POP or SMTP connection
 * using OAuth"; Google: "OAuth 2.0 Mechanism"):
 *
 *	C: AUTH XOAUTH2
 *	S: 334 (and nothing else)
 *	C: base64("user=" USER ^A "auth=Bearer " TOKEN ^A ^A)
 *	S: 235, or 535; or, from Google, 334 base64(JSON that names the error)
 *	C: (an empty line, after that 334)
 *	S: 535
 *
 * The token could stand in the line of AUTH already, but Postfix has no use
 * for it there: with a token, that line is longer than the 512 bytes that it
 * may have (RFC 4954 section 4). It would keep the token until the 334 comes,
 * and if that is not empty, Postfix (3.7.11, and the 3.12 snapshots of 2026)
 * writes what it has kept, token and all, into its log and into the reason
 * that senders get to read. So this plugin lets the server begin.
 *
 * The first line of this file keeps the Go tool from taking C for cgo.
 */

/* Here and not in cc.flags, so that a distribution's own level is no clash. */
#if defined(__OPTIMIZE__) && !defined(_FORTIFY_SOURCE)
#define _FORTIFY_SOURCE 2
#endif

#include <stddef.h>
#include <string.h>

#include <sasl/sasl.h>
#include <sasl/saslplug.h>

#define USER_IS "user="
#define TOKEN_IS "\001auth=Bearer "
#define END "\001\001"
#define LEN(literal) (sizeof(literal) - 1)

/*
 * The longest response, in bytes. Tokens of Entra ID have 1.5 to 4 kB;
 * what does not fit here is no token but a mistake in a table.
 */
#define MAX_RESPONSE ((size_t) 65536)

/*
 * The longest user name: a local part and a domain (RFC 5321 section
 * 4.5.3.1). Checked here since libsasl2 2.1.28 forgets to free a name that is
 * too long for it.
 */
#define MAX_USER 320

/* What an administrator reads first in every message from here. */
#define SAYS "XOAUTH2 (sendas): "

enum stage {
    STAGE_START,    /* nothing sent yet */
    STAGE_SENT,	    /* the token is out */
    STAGE_ANSWERED, /* the server's challenge has had its empty answer */
};

struct exchange {
    enum stage stage;
    char *response; /* holds the token, so it is wiped before it is freed */
    unsigned response_len;
};

/* complain tells the application, and through it the log, what went wrong. */
static int complain(const sasl_utils_t *utils, int result, const char *text)
{
    utils->seterror(utils->conn, 0, SAYS "%s", text);
    return result;
}

static void wipe_response(struct exchange *x, const sasl_utils_t *utils)
{
    if (x->response == NULL)
	return;
    utils->erasebuffer(x->response, x->response_len);
    utils->free(x->response);
    x->response = NULL;
    x->response_len = 0;
}

/*
 * call_simple asks one callback for a string and stores it in *value. Empty
 * counts as no answer. The callback need not fill in the length (libsasl2's
 * own plugins do not ask for it); where it does, a length that is not the
 * string's betrays a NUL inside.
 */
static int call_simple(const sasl_utils_t *utils, int id, const char **value)
{
    sasl_callback_ft proc = NULL;
    void *context = NULL;
    unsigned len = 0;

    int result = utils->getcallback(utils->conn, (unsigned long) id, &proc,
				    &context);
    if (result != SASL_OK || proc == NULL)
	return SASL_FAIL;
    /* By way of void (*)(void), which the compiler knows to be no real type. */
    sasl_getsimple_t *ask = (sasl_getsimple_t *) (void (*)(void)) proc;
    if (ask(context, id, value, &len) != SASL_OK || *value == NULL ||
	(len == 0 && **value == '\0'))
	return SASL_FAIL;
    if (len != 0 && memchr(*value, '\0', len) != NULL)
	return SASL_BADPARAM;
    return SASL_OK;
}

/* get_user finds the mailbox to authenticate as. */
static int get_user(const sasl_utils_t *utils, const char **user)
{
    int result = call_simple(utils, SASL_CB_AUTHNAME, user);

    if (result == SASL_FAIL)
	result = call_simple(utils, SASL_CB_USER, user);
    if (result == SASL_FAIL)
	return complain(utils, SASL_BADPARAM,
			"no user name was given; the password table must "
			"answer user:token");
    if (result != SASL_OK)
	return complain(utils, SASL_BADPARAM,
			"the user name holds a NUL byte");
    if (strlen(*user) > MAX_USER)
	return complain(utils, SASL_BADPARAM,
			"the user name is too long for a mail address");
    return SASL_OK;
}

/* get_token finds the access token. It stays the application's to free. */
static int get_token(const sasl_utils_t *utils, const sasl_secret_t **token)
{
    sasl_callback_ft proc = NULL;
    void *context = NULL;
    sasl_secret_t *secret = NULL;

    int result = utils->getcallback(utils->conn, SASL_CB_PASS, &proc, &context);
    if (result != SASL_OK || proc == NULL)
	return complain(utils, SASL_BADPARAM,
			"the application does not answer for passwords");
    sasl_getsecret_t *ask = (sasl_getsecret_t *) (void (*)(void)) proc;
    result = ask(utils->conn, context, SASL_CB_PASS, &secret);
    if (result != SASL_OK || secret == NULL || secret->len == 0)
	return complain(utils, SASL_BADPARAM,
			"no access token was given; the password table must "
			"answer user:token");
    *token = secret;
    return SASL_OK;
}

/*
 * All bytes of a user name are above the control characters: ^A would end the
 * field, and CR or LF have no place in an address. UTF-8 is left alone.
 */
static int good_user(const char *user, unsigned len)
{
    for (unsigned i = 0; i < len; i++) {
	unsigned char c = (unsigned char) user[i];
	if (c < 0x20 || c == 0x7f)
	    return 0;
    }
    return len > 0;
}

/* RFC 6750 section 2.1: a bearer token is visible ASCII, and has no blanks. */
static int good_token(const sasl_secret_t *token)
{
    for (unsigned long i = 0; i < token->len; i++)
	if (token->data[i] <= 0x20 || token->data[i] >= 0x7f)
	    return 0;
    return 1;
}

static char *append(char *to, const void *from, size_t len)
{
    memcpy(to, from, len);
    return to + len;
}

/* build_response puts user and token together. */
static int build_response(struct exchange *x, const sasl_utils_t *utils,
			  const char *user, size_t user_len,
			  const sasl_secret_t *token)
{
    const size_t fixed = LEN(USER_IS) + LEN(TOKEN_IS) + LEN(END);

    if (token->len > MAX_RESPONSE - fixed ||
	user_len > MAX_RESPONSE - fixed - token->len)
	return complain(utils, SASL_BADPARAM,
			"user name and access token are too long; is the "
			"password really an access token?");

    size_t len = fixed + user_len + token->len;
    char *p = utils->malloc(len);
    if (p == NULL)
	return complain(utils, SASL_NOMEM, "out of memory");
    x->response = p;
    x->response_len = (unsigned) len;

    p = append(p, USER_IS, LEN(USER_IS));
    p = append(p, user, user_len);
    p = append(p, TOKEN_IS, LEN(TOKEN_IS));
    p = append(p, token->data, token->len);
    append(p, END, LEN(END));
    return SASL_OK;
}

/* start makes the response out of what the application answers. */
static int start(struct exchange *x, sasl_client_params_t *params,
		 sasl_out_params_t *oparams)
{
    const sasl_utils_t *utils = params->utils;
    const char *user = NULL;
    const sasl_secret_t *token = NULL;

    int result = get_user(utils, &user);
    if (result != SASL_OK)
	return result;
    result = get_token(utils, &token);
    if (result != SASL_OK)
	return result;
    if (!good_token(token))
	return complain(utils, SASL_BADPARAM,
			"the access token holds a byte that no token has, "
			"such as a blank or a line end");

    /* libsasl2 wants both names set, even where they are the same. */
    result = params->canon_user(utils->conn, user, 0,
				SASL_CU_AUTHID | SASL_CU_AUTHZID, oparams);
    if (result != SASL_OK)
	return complain(utils, result, "the user name cannot be used");
    if (!good_user(oparams->authid, oparams->alen))
	return complain(utils, SASL_BADPARAM,
			"the user name is empty or holds a control character");

    return build_response(x, utils, oparams->authid, oparams->alen, token);
}

/* finish says that this side is done and wants no security layer. */
static void finish(sasl_out_params_t *oparams)
{
    oparams->doneflag = 1;
    oparams->mech_ssf = 0;
    oparams->maxoutbuf = 0;
    oparams->encode_context = NULL;
    oparams->encode = NULL;
    oparams->decode_context = NULL;
    oparams->decode = NULL;
    oparams->param_version = 0;
}

static int mech_new(void *glob_context, sasl_client_params_t *params,
		    void **conn_context)
{
    (void) glob_context;
    struct exchange *x = params->utils->calloc(1, sizeof(*x));

    if (x == NULL)
	return complain(params->utils, SASL_NOMEM, "out of memory");
    *conn_context = x;
    return SASL_OK;
}

static int step_start(struct exchange *x, sasl_client_params_t *params,
		      unsigned serverinlen, const char **clientout,
		      unsigned *clientoutlen, sasl_out_params_t *oparams)
{
    if (serverinlen > 0)
	return complain(params->utils, SASL_BADPROT,
			"the server sent a challenge before it had seen the "
			"token");
    wipe_response(x, params->utils);
    int result = start(x, params, oparams);
    if (result != SASL_OK) {
	wipe_response(x, params->utils);
	return result;
    }
    x->stage = STAGE_SENT;
    *clientout = x->response;
    *clientoutlen = x->response_len;
    /* Not OK: libsasl2 would then refuse to answer a challenge. */
    return SASL_CONTINUE;
}

/*
 * step_sent answers whatever comes after the token with nothing. With a
 * challenge the server has refused the token, and says so in a reply of its
 * own only when the client has answered. Without one the application tells us
 * that the server is content.
 */
static int step_sent(struct exchange *x, sasl_client_params_t *params,
		     unsigned serverinlen, sasl_out_params_t *oparams)
{
    wipe_response(x, params->utils);
    x->stage = STAGE_ANSWERED;
    if (serverinlen > 0) {
	params->utils->log(params->utils->conn, SASL_LOG_NOTE,
			   SAYS "the server does not like the access token");
	return SASL_CONTINUE;
    }
    finish(oparams);
    return SASL_OK;
}

static int mech_step(void *conn_context, sasl_client_params_t *params,
		     const char *serverin, unsigned serverinlen,
		     sasl_interact_t **prompt_need, const char **clientout,
		     unsigned *clientoutlen, sasl_out_params_t *oparams)
{
    struct exchange *x = conn_context;

    (void) serverin; /* the JSON of a challenge adds nothing to the 5xx */
    (void) prompt_need;
    *clientout = "";
    *clientoutlen = 0;
    switch (x->stage) {
    case STAGE_START:
	return step_start(x, params, serverinlen, clientout, clientoutlen,
			  oparams);
    case STAGE_SENT:
	return step_sent(x, params, serverinlen, oparams);
    case STAGE_ANSWERED:
	break;
    }
    return complain(params->utils, SASL_BADPROT,
		    "the server sent a second challenge instead of a verdict");
}

static void mech_dispose(void *conn_context, const sasl_utils_t *utils)
{
    struct exchange *x = conn_context;

    if (x == NULL)
	return;
    wipe_response(x, utils);
    utils->free(x);
}

/*
 * libsasl2 demands these callbacks before it offers the mechanism. Left out,
 * it would demand SASL_CB_AUTHNAME too, for which SASL_CB_USER may stand in.
 */
static const unsigned long required_prompts[] = {
    SASL_CB_PASS,
    SASL_CB_LIST_END,
};

static sasl_client_plug_t plugin = {
    .mech_name = "XOAUTH2",
    .max_ssf = 0,
    /* No NOPLAINTEXT: who can read the line can use the token. */
    .security_flags = SASL_SEC_NOANONYMOUS | SASL_SEC_PASS_CREDENTIALS,
    .features = SASL_FEAT_SERVER_FIRST | SASL_FEAT_ALLOWS_PROXY,
    .required_prompts = required_prompts,
    .mech_new = mech_new,
    .mech_step = mech_step,
    .mech_dispose = mech_dispose,
};

/* The one symbol that libsasl2 looks for in a client's plugin (dlopen.c). */
__attribute__((visibility("default"))) sasl_client_plug_init_t
    sasl_client_plug_init;

int sasl_client_plug_init(const sasl_utils_t *utils, int max_version,
			  int *out_version, sasl_client_plug_t **pluglist,
			  int *plugcount)
{
    if (max_version < SASL_CLIENT_PLUG_VERSION) {
	utils->log(NULL, SASL_LOG_ERR,
		   SAYS "this libsasl2 is too old for the plugin");
	return SASL_BADVERS;
    }
    *out_version = SASL_CLIENT_PLUG_VERSION;
    *pluglist = &plugin;
    *plugcount = 1;
    return SASL_OK;
}
