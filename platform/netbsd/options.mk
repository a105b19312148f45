# $NetBSD$
# SPDX-License-Identifier: BSD-3-Clause

PKG_OPTIONS_VAR=	PKG_OPTIONS.lingerd
PKG_SUPPORTED_OPTIONS=	apache
PKG_SUGGESTED_OPTIONS=	apache

.include "../../mk/bsd.options.mk"

PLIST_VARS+=	apache

# mod_lingerd
.if !empty(PKG_OPTIONS:Mapache)
PLIST.apache=		yes
APACHE_MODULE=		yes
INSTALLATION_DIRS+=	lib/httpd

.  include "../../mk/apache.mk"

post-build:
	cd ${WRKSRC}/apache-2.4 && \
		${APXS} -c -I../apache-1.3 mod_lingerd.c ../apache-1.3/ap_lingerd.c

post-install:
	${INSTALL_LIB} ${WRKSRC}/apache-2.4/.libs/mod_lingerd.so \
		${DESTDIR}${PREFIX}/lib/httpd
.endif
