/*
 * filter: the least that a milter in C can do, for BenchmarkTransaction to compare with. It makes
 * the changes that sendas makes to mail of a printer, without asking who sends it, whether it
 * may, or what is in the field; and it logs nothing.
 *
 *	cc -O2 -o filter filter.c -lmilter -lpthread
 *	./filter unix:/path/of/socket
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <libmilter/mfapi.h>

#define IDENTITY "scan@contoso.com"

/* One connection: its From field, until the message ends. */
struct session {
	char from[512];
};

static sfsistat
negotiate(SMFICTX *ctx, unsigned long actions, unsigned long steps, unsigned long a, unsigned long b,
	  unsigned long *wantactions, unsigned long *wantsteps, unsigned long *wanta, unsigned long *wantb)
{
	const unsigned long want = SMFIP_NOCONNECT | SMFIP_NOHELO | SMFIP_NODATA | SMFIP_NOEOH | SMFIP_NOBODY |
		SMFIP_NOUNKNOWN | SMFIP_NR_MAIL | SMFIP_NR_RCPT | SMFIP_NR_HDR;

	(void)ctx, (void)a, (void)b;
	if ((steps & want) != want)
		return SMFIS_REJECT;
	*wantactions = actions & (SMFIF_ADDHDRS | SMFIF_CHGHDRS | SMFIF_CHGFROM);
	*wantsteps = want;
	*wanta = *wantb = 0;
	return SMFIS_CONTINUE;
}

static sfsistat
mail(SMFICTX *ctx, char **argv)
{
	struct session *s = smfi_getpriv(ctx);

	(void)argv;
	if (s == NULL) {
		if ((s = malloc(sizeof *s)) == NULL)
			return SMFIS_TEMPFAIL;
		if (smfi_setpriv(ctx, s) != MI_SUCCESS) {
			free(s);
			return SMFIS_TEMPFAIL;
		}
	}
	s->from[0] = '\0';
	return SMFIS_NOREPLY;
}

static sfsistat
rcpt(SMFICTX *ctx, char **argv)
{
	(void)ctx, (void)argv;
	return SMFIS_NOREPLY;
}

static sfsistat
header(SMFICTX *ctx, char *name, char *value)
{
	struct session *s = smfi_getpriv(ctx);

	if (s != NULL && strcasecmp(name, "From") == 0)
		snprintf(s->from, sizeof s->from, "%s", value);
	return SMFIS_NOREPLY;
}

static sfsistat
endofmessage(SMFICTX *ctx)
{
	struct session *s = smfi_getpriv(ctx);
	char from[sizeof s->from + sizeof IDENTITY + 2];
	const char *angle;

	if (s == NULL || (angle = strchr(s->from, '<')) == NULL)
		return SMFIS_TEMPFAIL;
	snprintf(from, sizeof from, "%.*s<" IDENTITY ">", (int)(angle - s->from), s->from);
	if (smfi_chgfrom(ctx, "<" IDENTITY ">", NULL) != MI_SUCCESS ||
	    smfi_chgheader(ctx, "From", 1, from) != MI_SUCCESS ||
	    smfi_addheader(ctx, "Reply-To", s->from) != MI_SUCCESS ||
	    smfi_addheader(ctx, "X-Original-From", s->from) != MI_SUCCESS)
		return SMFIS_TEMPFAIL;
	return SMFIS_ACCEPT;
}

static sfsistat
endofsession(SMFICTX *ctx)
{
	free(smfi_getpriv(ctx));
	smfi_setpriv(ctx, NULL);
	return SMFIS_CONTINUE;
}

int
main(int argc, char **argv)
{
	struct smfiDesc filter = {
		.xxfi_name = "filter",
		.xxfi_version = SMFI_VERSION,
		.xxfi_flags = SMFIF_ADDHDRS | SMFIF_CHGHDRS | SMFIF_CHGFROM,
		.xxfi_envfrom = mail,
		.xxfi_envrcpt = rcpt,
		.xxfi_header = header,
		.xxfi_eom = endofmessage,
		.xxfi_close = endofsession,
		.xxfi_negotiate = negotiate,
	};

	if (argc != 2) {
		fprintf(stderr, "usage: filter unix:/path/of/socket\n");
		return 64;
	}
	if (smfi_setconn(argv[1]) != MI_SUCCESS || smfi_register(filter) != MI_SUCCESS) {
		fprintf(stderr, "filter: libmilter refuses %s\n", argv[1]);
		return 70;
	}
	return smfi_main() == MI_SUCCESS ? 0 : 70;
}
