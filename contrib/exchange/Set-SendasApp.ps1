#Requires -Version 5.1

<#
.SYNOPSIS
Makes an app in Microsoft Entra as which sendas signs in, and gives it the rights in Exchange Online.

.DESCRIPTION
There are three models; -Model says which:

  Rbac     The app signs in by itself, with a certificate, and the role "Application SMTP.SendAsApp" lets
           it send as the mailboxes of one security group, and no other. Recommended.
  Classic  The app signs in by itself, with a certificate. It has the permission SMTP.SendAsApp in Entra, to
           which this script consents for the organisation, and Full Access on each mailbox.
  User     A user signs in, with "sendas login", and the app acts for them. There is no certificate. For
           organisations where no app may act by itself.

What the script makes, in this order; what is there already is left as it is:

  in Entra     the app registration (single tenant), its certificate, the enterprise application; for Classic the permission and
               the consent; for User "Allow public client flows" and the delegated permissions SMTP.Send and offline_access
  in Exchange  the service principal, by the object id of the ENTERPRISE application; for Rbac the security group with
               the mailboxes, the management scope and the role assignment; for Classic Full Access; for all: Send As,
               and SMTP AUTH switched on for each mailbox

Then it prints what belongs into sendas.yaml.

It expects that Connect-MgGraph and Connect-ExchangeOnline were run before, in the same PowerShell. Where
different people administer Entra and Exchange, or the two modules do not get on, -Part Entra and -Part Exchange
do one half each; the first prints the ids that the second needs.

It never removes anything, and never reads a private key. -WhatIf shows what it would make.

.PARAMETER Model
Rbac, Classic or User; see above.

.PARAMETER Part
All, Entra or Exchange.

.PARAMETER Mailbox
The mailboxes as which sendas signs in, by primary address.

.PARAMETER SendAs
Which other addresses a mailbox may send as: @{ 'erp@contoso.com' = 'billing@contoso.com', 'hr@contoso.com' }

.PARAMETER Name
The name of the app. An app of this name, if there is just one, is used and not made anew.

.PARAMETER ClientId
The application (client) id of an app that is there already, instead of -Name. Needed with -Part Exchange.

.PARAMETER ObjectId
With -Part Exchange: the object id of the enterprise application. It is not the one on the page "App registrations".

.PARAMETER CertificatePath
The certificate, without its key, in PEM or DER: what "openssl x509 -in relay-app.pem -out relay-app.cer" writes.

.PARAMETER Group
With -Model Rbac: the name of the mail-enabled security group. Only its direct members count.

.PARAMETER CredentialName
What the credential is called in sendas.yaml.

.EXAMPLE
Connect-MgGraph -Scopes Application.ReadWrite.All
Connect-ExchangeOnline
.\Set-SendasApp.ps1 -Model Rbac -CertificatePath .\relay-app.cer -Mailbox erp@contoso.com, scan@contoso.com -SendAs @{ 'erp@contoso.com' = 'billing@contoso.com' }

Sets up the recommended model for two mailboxes, of which one may also send as billing@contoso.com.

.EXAMPLE
.\Set-SendasApp.ps1 -Model Rbac -CertificatePath .\relay-app.cer -Mailbox erp@contoso.com -WhatIf

Shows what is missing, and makes nothing.

.EXAMPLE
.\Set-SendasApp.ps1 -Model Rbac -Part Exchange -ClientId 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab -ObjectId 8a1b2c3d-4e5f-4a6b-9c7d-0123456789ab -Mailbox erp@contoso.com

The half of the Exchange administrator. The first half printed both ids.

.EXAMPLE
Connect-MgGraph -Scopes Application.ReadWrite.All
Connect-ExchangeOnline
.\Set-SendasApp.ps1 -Model User -Mailbox scan@contoso.com

Prepares an app for "sendas login".

.OUTPUTS
Lines of text: the ids, and the block for sendas.yaml.

.NOTES
Needs the modules Microsoft.Graph.Authentication (2.0 or newer) and ExchangeOnlineManagement (3.0 or newer). See README.md.

.LINK
https://learn.microsoft.com/exchange/permissions-exo/application-rbac
#>
[CmdletBinding(SupportsShouldProcess = $true, ConfirmImpact = 'Medium')]
[OutputType([string])]
param(
    [ValidateSet('Rbac', 'Classic', 'User')]
    [string] $Model = 'Rbac',

    [ValidateSet('All', 'Entra', 'Exchange')]
    [string] $Part = 'All',

    [string[]] $Mailbox = @(),

    [hashtable] $SendAs = @{},

    [ValidateNotNullOrEmpty()]
    [string] $Name = 'sendas relay',

    [ValidatePattern('^$|^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$')]
    [string] $ClientId = '',

    [ValidatePattern('^$|^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$')]
    [string] $ObjectId = '',

    [string] $CertificatePath = '',

    [ValidateNotNullOrEmpty()]
    [string] $Group = 'sendas senders',

    [ValidatePattern('^[A-Za-z0-9._-]{1,64}$')]
    [string] $CredentialName = 'relay-app'
)

Set-StrictMode -Version Latest
# This does not reach into the functions of a module, so every cmdlet gets -ErrorAction Stop as well.
$ErrorActionPreference = 'Stop'

# The functions below are simple ones, without a $PSCmdlet of their own: they ask the script's.
$caller = $PSCmdlet

$role = 'Application SMTP.SendAsApp'
$graphApp = '00000003-0000-0000-c000-000000000000'    # Microsoft Graph, in every tenant
$exchangeApp = '00000002-0000-0ff1-ce00-000000000000' # Office 365 Exchange Online, likewise
$isNew = '(made by this script)'                      # stands for an id in -WhatIf

$doesEntra = $Part -ne 'Exchange'
$doesExchange = $Part -ne 'Entra'

# Get-Property returns a property of an object or hash table, or $null where it has none; strict mode would stop.
function Get-Property {
    param($InputObject, [string] $Name)
    if ($InputObject -is [System.Collections.IDictionary]) {
        if ($InputObject.Contains($Name)) { return $InputObject[$Name] }
        return $null
    }
    if ($null -eq $InputObject) { return $null }
    $property = $InputObject.PSObject.Properties[$Name]
    if ($null -ne $property) { $property.Value }
}

# Test-NotFound tells "there is no such object" from failures that may pass.
function Test-NotFound {
    param($ErrorRecord)
    ($ErrorRecord.Exception.Message + ' ' + $ErrorRecord.FullyQualifiedErrorId) -match "ManagementObjectNotFound|couldn't be found|ResourceNotFound"
}

# Test-Approval asks -WhatIf and -Confirm before a change.
function Test-Approval {
    param([string] $Target, [string] $Action)
    $caller.ShouldProcess($Target, $Action)
}

# Wait-For runs a step until it does not fail: what was made in Entra takes a while to be known
# everywhere, in Exchange up to some minutes.
function Wait-For {
    param([string] $What, [int] $Seconds, [scriptblock] $Step)
    $until = [DateTime]::UtcNow.AddSeconds($Seconds)
    while ($true) {
        try { return & $Step }
        catch {
            # A right that is missing stays missing.
            if ([DateTime]::UtcNow -ge $until -or $_.Exception.Message -match 'the account needs the role') { throw }
            Write-Warning ('{0}: not yet ({1}); trying again' -f $What, $_.Exception.Message.Split("`n")[0].Trim())
            Start-Sleep -Seconds 15
        }
    }
}

# --- Checks before anything is changed -------------------------------------------------------------

function Assert-Parameter {
    if ($doesExchange -and $Mailbox.Count -eq 0) { throw 'Name the mailboxes: -Mailbox erp@contoso.com, scan@contoso.com' }
    if ($doesEntra -and $Model -ne 'User' -and -not $CertificatePath) {
        throw 'Name the certificate: -CertificatePath .\relay-app.cer. On the relay, "openssl x509 -in relay-app.pem -out relay-app.cer" writes it.'
    }
    if ($Part -eq 'Exchange' -and $Model -ne 'User' -and (-not $ClientId -or -not $ObjectId)) {
        throw '-Part Exchange needs -ClientId and -ObjectId, which -Part Entra has printed.'
    }
    if ($Part -ne 'Exchange' -and $ObjectId) { throw '-ObjectId is for -Part Exchange; without it the script looks the id up.' }
    foreach ($sender in $SendAs.Keys) {
        if ($Mailbox -notcontains $sender) { throw ('-SendAs names {0}, which -Mailbox does not.' -f $sender) }
    }
}

# Read-Certificate reads a certificate and refuses a key, which must stay on the relay.
function Read-Certificate {
    $path = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($CertificatePath)
    if (-not [System.IO.File]::Exists($path)) { throw ('There is no file {0}.' -f $path) }
    $bytes = [System.IO.File]::ReadAllBytes($path)
    if ([System.Text.Encoding]::ASCII.GetString($bytes) -match 'PRIVATE KEY') {
        throw ('{0} holds a private key, which must not leave the relay. Take the certificate alone: openssl x509 -in relay-app.pem -out relay-app.cer' -f $path)
    }
    try { $certificate = [System.Security.Cryptography.X509Certificates.X509Certificate2]::new($bytes) }
    catch { throw ('{0} is not a certificate in PEM or DER: {1}' -f $path, $_.Exception.Message) }
    if ($certificate.HasPrivateKey) { throw ('{0} holds a private key, which must not leave the relay.' -f $path) }
    if ($certificate.NotAfter -lt [DateTime]::Now) { throw ('{0} ended on {1:yyyy-MM-dd}. Make a new certificate.' -f $path, $certificate.NotAfter) }
    $certificate
}

function Assert-GraphSession {
    if ($null -eq (Get-Command -Name Invoke-MgGraphRequest -ErrorAction SilentlyContinue)) {
        throw 'The module Microsoft.Graph.Authentication is missing. Type: Install-Module Microsoft.Graph.Authentication'
    }
    $needed = @('Application.ReadWrite.All')
    if ($Model -eq 'Classic') { $needed += 'AppRoleAssignment.ReadWrite.All' }
    $connect = 'Type: Connect-MgGraph -Scopes ' + ($needed -join ',')
    $context = Get-MgContext
    if ($null -eq $context) { throw ('There is no session with Microsoft Graph. ' + $connect) }
    if ([string] (Get-Property $context 'AuthType') -eq 'AppOnly') { return } # its rights stand in Entra
    foreach ($scope in $needed) {
        if (@($context.Scopes) -notcontains $scope) { throw ('The session with Microsoft Graph lacks {0}. {1}' -f $scope, $connect) }
    }
}

function Assert-ExchangeSession {
    if ($null -eq (Get-Command -Name Get-ConnectionInformation -ErrorAction SilentlyContinue)) {
        throw 'The module ExchangeOnlineManagement 3.0 or newer is missing. Type: Install-Module ExchangeOnlineManagement'
    }
    $sessions = @(Get-ConnectionInformation -ErrorAction Stop | Where-Object { [string] $_.State -eq 'Connected' })
    if ($sessions.Count -eq 0) { throw 'There is no session with Exchange Online. Type: Connect-ExchangeOnline' }
    # A cmdlet that the account has no role for is not there at all.
    $cmdlets = @('Get-CASMailbox', 'Set-CASMailbox', 'Get-RecipientPermission', 'Add-RecipientPermission')
    if ($Model -ne 'User') { $cmdlets += 'Get-ServicePrincipal', 'New-ServicePrincipal' }
    if ($Model -eq 'Classic') { $cmdlets += 'Get-MailboxPermission', 'Add-MailboxPermission' }
    if ($Model -eq 'Rbac') {
        $cmdlets += 'Get-DistributionGroup', 'New-DistributionGroup', 'Get-DistributionGroupMember', 'Add-DistributionGroupMember',
        'Get-ManagementScope', 'New-ManagementScope', 'Get-ManagementRoleAssignment', 'New-ManagementRoleAssignment'
    }
    foreach ($cmdlet in $cmdlets) {
        if ($null -eq (Get-Command -Name $cmdlet -ErrorAction SilentlyContinue)) {
            throw ('The signed-in account may not use {0}. It has to be in the role group Organization Management.' -f $cmdlet)
        }
    }
}

# --- Entra -----------------------------------------------------------------------------------------

# Invoke-Graph makes one request. What Microsoft says about a failure is in ErrorDetails.
function Invoke-Graph {
    param([string] $Method, [string] $Uri, $Body)
    $arguments = @{ Method = $Method; Uri = $Uri; OutputType = 'Hashtable'; ErrorAction = 'Stop' }
    if ($null -ne $Body) {
        $arguments.Body = ConvertTo-Json -InputObject $Body -Depth 10 -Compress
        $arguments.ContentType = 'application/json'
    }
    try { Invoke-MgGraphRequest @arguments }
    catch {
        $text = $_.Exception.Message
        if ($null -ne $_.ErrorDetails -and $_.ErrorDetails.Message) { $text = $_.ErrorDetails.Message }
        $path = $Uri.Split('?')[0]
        if ($text -match 'Authorization_RequestDenied|Forbidden') {
            throw ('Microsoft Graph refused {0} {1}: the account needs the role Cloud Application Administrator, and for -Model Classic Privileged Role Administrator. It said: {2}' -f $Method, $path, $text)
        }
        throw ('Microsoft Graph refused {0} {1}: {2}' -f $Method, $path, $text)
    }
}

# Get-GraphList returns all pages of a list.
function Get-GraphList {
    param([string] $Uri)
    while ($Uri) {
        $page = Invoke-Graph -Method GET -Uri $Uri
        foreach ($item in @(Get-Property $page 'value')) {
            if ($null -ne $item) { $item }
        }
        $Uri = [string] (Get-Property $page '@odata.nextLink')
    }
}

# Find-App returns the app registration, or nothing.
function Find-App {
    $filter = "appId eq '{0}'" -f $ClientId
    if (-not $ClientId) { $filter = "displayName eq '{0}'" -f $Name.Replace("'", "''") }
    $found = @(Get-GraphList ('/v1.0/applications?$filter=' + [uri]::EscapeDataString($filter)))
    if ($found.Count -gt 1) { throw ('{0} apps are called "{1}". Say which with -ClientId.' -f $found.Count, $Name) }
    if ($found.Count -eq 0 -and $ClientId) { throw ('There is no app registration with the id {0} in this tenant.' -f $ClientId) }
    if ($found.Count -eq 1) { $found[0] }
}

# Set-App makes the app registration where there is none, and returns it.
function Set-App {
    $app = Find-App
    if ($null -ne $app) {
        Write-Verbose ('the app registration "{0}" is there: {1}' -f $app.displayName, $app.appId)
        return $app
    }
    if (-not (Test-Approval ('app registration "{0}"' -f $Name) 'Create')) { return @{ id = $null; appId = $isNew; displayName = $Name } }
    Invoke-Graph -Method POST -Uri '/v1.0/applications' -Body @{ displayName = $Name; signInAudience = 'AzureADMyOrg' }
}

# ConvertTo-Moment writes a time as Graph reads it, whether it came as text or as a DateTime.
function ConvertTo-Moment {
    param($Value)
    if ($Value -is [DateTime]) {
        return $Value.ToUniversalTime().ToString('yyyy-MM-ddTHH:mm:ssZ', [System.Globalization.CultureInfo]::InvariantCulture)
    }
    $Value
}

# Set-Certificate uploads the certificate. Graph takes the list as a whole, so those that are there go along; their keys are
# shown only to a request for a single app that asks for them.
function Set-Certificate {
    param($App, $Certificate)
    $key = [Convert]::ToBase64String($Certificate.RawData)
    $list = @()
    if ($App.id) {
        $now = Invoke-Graph -Method GET -Uri ('/v1.0/applications/{0}?$select=id,keyCredentials' -f $App.id)
        foreach ($old in @(Get-Property $now 'keyCredentials')) {
            if ($null -eq $old) { continue }
            if ([string] (Get-Property $old 'key') -eq $key) {
                Write-Verbose 'the certificate is there'
                return
            }
            if (-not (Get-Property $old 'key')) {
                throw 'The app has another certificate, which Microsoft Graph does not show and would drop. Upload yours by hand: App registrations > the app > Certificates & secrets. Then run this again.'
            }
            $kept = @{}
            foreach ($field in 'customKeyIdentifier', 'displayName', 'keyId', 'type', 'usage', 'key') {
                if ($null -ne (Get-Property $old $field)) { $kept[$field] = Get-Property $old $field }
            }
            foreach ($field in 'startDateTime', 'endDateTime') {
                if ($null -ne (Get-Property $old $field)) { $kept[$field] = ConvertTo-Moment (Get-Property $old $field) }
            }
            $list += $kept
        }
    }
    $list += @{
        type = 'AsymmetricX509Cert'; usage = 'Verify'; key = $key; displayName = $Certificate.Subject
        startDateTime = ConvertTo-Moment $Certificate.NotBefore; endDateTime = ConvertTo-Moment $Certificate.NotAfter
    }
    $what = 'Upload the certificate {0}, which ends on {1:yyyy-MM-dd}, beside {2} others' -f $Certificate.Thumbprint, $Certificate.NotAfter, ($list.Count - 1)
    if (-not (Test-Approval ('app "{0}"' -f $App.displayName) $what)) { return }
    Wait-For -What 'uploading the certificate' -Seconds 60 -Step {
        [void] (Invoke-Graph -Method PATCH -Uri ('/v1.0/applications/{0}' -f $App.id) -Body @{ keyCredentials = @($list) })
    }
}

# Set-EnterpriseApp makes the enterprise application (service principal) of an app, and returns it.
function Set-EnterpriseApp {
    param($App)
    if ($App.id) {
        $found = @(Find-EnterpriseApp $App.appId)
        if ($found.Count -gt 0) {
            Write-Verbose ('the enterprise application is there: {0}' -f $found[0].id)
            return $found[0]
        }
    }
    if (-not (Test-Approval ('enterprise application "{0}"' -f $App.displayName) 'Create')) { return @{ id = $null; appId = $App.appId } }
    Wait-For -What 'making the enterprise application' -Seconds 120 -Step {
        # The tag makes the Entra admin centre list it.
        Invoke-Graph -Method POST -Uri '/v1.0/servicePrincipals' -Body @{ appId = $App.appId; tags = @('WindowsAzureActiveDirectoryIntegratedApp') }
    }
}

function Find-EnterpriseApp {
    param([string] $AppId)
    Get-GraphList ('/v1.0/servicePrincipals?$filter=' + [uri]::EscapeDataString("appId eq '$AppId'"))
}

# Get-Permission returns the id of a permission that a resource offers, and of the resource itself.
function Get-Permission {
    param([string] $Resource, [string] $Kind, [string] $Value)
    $found = @(Find-EnterpriseApp $Resource)
    if ($found.Count -ne 1) { throw ('This tenant has no enterprise application {0}: does it have Exchange Online?' -f $Resource) }
    foreach ($permission in @(Get-Property $found[0] $Kind)) {
        if ([string] (Get-Property $permission 'value') -eq $Value) { return @{ id = $permission.id; resource = $found[0].id } }
    }
    throw ('{0} offers no permission {1} in this tenant.' -f $found[0].displayName, $Value)
}

# Set-RequiredAccess lists permissions in the app registration, beside those that are there.
function Set-RequiredAccess {
    param($App, [string] $Resource, [string] $Type, [string[]] $Id, [string] $What)
    $missing = @($Id)
    $list = @()
    $own = @()
    foreach ($entry in @(Get-Property $App 'requiredResourceAccess')) {
        if ($null -eq $entry) { continue }
        $access = @(foreach ($a in @($entry.resourceAccess)) { @{ id = [string] $a.id; type = [string] $a.type } })
        if ([string] $entry.resourceAppId -eq $Resource) { $own = $access } else { $list += @{ resourceAppId = [string] $entry.resourceAppId; resourceAccess = @($access) } }
    }
    foreach ($a in $own) { $missing = @($missing | Where-Object { $_ -ne $a.id }) }
    if ($missing.Count -eq 0) {
        Write-Verbose ('the app registration lists {0}' -f $What)
        return
    }
    foreach ($one in $missing) { $own += @{ id = $one; type = $Type } }
    $list += @{ resourceAppId = $Resource; resourceAccess = @($own) }
    if (-not (Test-Approval ('app "{0}"' -f $App.displayName) ('List the permission ' + $What))) { return }
    [void] (Invoke-Graph -Method PATCH -Uri ('/v1.0/applications/{0}' -f $App.id) -Body @{ requiredResourceAccess = @($list) })
}

# Get-AppRole returns the application permissions that the organisation has consented to.
function Get-AppRole {
    param($EnterpriseApp)
    if ($EnterpriseApp.id) { Get-GraphList ('/v1.0/servicePrincipals/{0}/appRoleAssignments' -f $EnterpriseApp.id) }
}

# Set-Consent consents to SMTP.SendAsApp for the organisation (classic model).
function Set-Consent {
    param($App, $EnterpriseApp)
    $permission = Get-Permission -Resource $exchangeApp -Kind 'appRoles' -Value 'SMTP.SendAsApp'
    Set-RequiredAccess -App $App -Resource $exchangeApp -Type 'Role' -Id $permission.id -What 'SMTP.SendAsApp'
    $given = @(Get-AppRole $EnterpriseApp | Where-Object { [string] $_.appRoleId -eq [string] $permission.id })
    if ($given.Count -gt 0) {
        Write-Verbose 'the consent to SMTP.SendAsApp is there'
        return
    }
    if (-not (Test-Approval ('app "{0}"' -f $App.displayName) 'Consent to SMTP.SendAsApp for the organisation')) { return }
    Wait-For -What 'consenting' -Seconds 60 -Step {
        [void] (Invoke-Graph -Method POST -Uri ('/v1.0/servicePrincipals/{0}/appRoleAssignments' -f $EnterpriseApp.id) -Body @{
                principalId = $EnterpriseApp.id; resourceId = $permission.resource; appRoleId = $permission.id
            })
    }
}

# Show-Consent warns where the permission of the classic model spoils the other: Exchange then wants Full Access as well.
function Show-Consent {
    param($EnterpriseApp)
    $permission = Get-Permission -Resource $exchangeApp -Kind 'appRoles' -Value 'SMTP.SendAsApp'
    if (@(Get-AppRole $EnterpriseApp | Where-Object { [string] $_.appRoleId -eq [string] $permission.id }).Count -gt 0) {
        Write-Warning 'The app has SMTP.SendAsApp in Entra too. With -Model Rbac it must not: remove it under Enterprise applications > the app > Permissions, or Exchange Online asks for Full Access on the mailboxes as well.'
    }
}

# Set-PublicClient lets users sign in to the app by device code and in a browser on the relay.
function Set-PublicClient {
    param($App)
    $address = 'http://localhost' # Entra ignores the port of this one
    $client = Get-Property $App 'publicClient'
    $addresses = @(@(Get-Property $client 'redirectUris') | Where-Object { $_ })
    if ((Get-Property $App 'isFallbackPublicClient') -eq $true -and $addresses -contains $address) {
        Write-Verbose 'the app allows public client flows'
    }
    elseif (Test-Approval ('app "{0}"' -f $App.displayName) 'Allow public client flows, and sign-in in a browser on the relay') {
        if ($addresses -notcontains $address) { $addresses += $address }
        [void] (Invoke-Graph -Method PATCH -Uri ('/v1.0/applications/{0}' -f $App.id) -Body @{
                isFallbackPublicClient = $true; publicClient = @{ redirectUris = @($addresses) }
            })
    }
    # Registered with Microsoft Graph, though the token that sendas asks for is Exchange Online's.
    $ids = @(foreach ($value in 'SMTP.Send', 'offline_access') { (Get-Permission -Resource $graphApp -Kind 'oauth2PermissionScopes' -Value $value).id })
    Set-RequiredAccess -App $App -Resource $graphApp -Type 'Scope' -Id $ids -What 'SMTP.Send and offline_access (delegated)'
}

# --- Exchange Online -------------------------------------------------------------------------------

# Assert-Mailbox stops where a mailbox is named that does not exist or has another primary address: sendas
# and Exchange have to mean the same.
function Assert-Mailbox {
    foreach ($address in $Mailbox) {
        try { $found = @(Get-EXOMailbox -Identity $address -ErrorAction Stop) }
        catch {
            if (-not (Test-NotFound $_)) { throw }
            throw ('There is no mailbox {0}.' -f $address)
        }
        if ($found.Count -ne 1) { throw ('{0} mailboxes are called {1}.' -f $found.Count, $address) }
        $primary = [string] $found[0].PrimarySmtpAddress
        if ($primary -ne $address) { throw ('The primary address of {0} is {1}. Write that one after -Mailbox.' -f $address, $primary) }
    }
}

# Set-ExchangePrincipal tells Exchange about the enterprise application.
function Set-ExchangePrincipal {
    param([string] $AppId, [string] $Enterprise)
    foreach ($known in @(Get-ServicePrincipal -ErrorAction Stop)) {
        if ([string] $known.AppId -ne $AppId) { continue }
        $id = [string] (Get-Property $known 'ObjectId')
        if (-not $id) { $id = [string] (Get-Property $known 'ServiceId') } # the property's older name
        if ($id -eq $Enterprise) {
            Write-Verbose 'Exchange Online knows the service principal'
            return
        }
        throw ('Exchange Online knows the app by the object id {0}, but the enterprise application has {1}: every sign-in would fail. Type: Remove-ServicePrincipal -Identity {0}; then run this again.' -f $id, $Enterprise)
    }
    if (-not (Test-Approval ('service principal {0}' -f $Enterprise) 'Create in Exchange Online')) { return }
    Wait-For -What 'making the service principal in Exchange Online' -Seconds 300 -Step {
        [void] (New-ServicePrincipal -AppId $AppId -ObjectId $Enterprise -DisplayName $Name -ErrorAction Stop)
    }
}

# Set-Group makes the security group with the mailboxes, and returns it.
function Set-Group {
    $found = @()
    try { $found = @(Get-DistributionGroup -Identity $Group -ErrorAction Stop) }
    catch { if (-not (Test-NotFound $_)) { throw } }
    if ($found.Count -gt 1) { throw ('{0} groups are called "{1}".' -f $found.Count, $Group) }
    if ($found.Count -eq 0) {
        if (-not (Test-Approval ('mail-enabled security group "{0}"' -f $Group) ('Create with {0}' -f ($Mailbox -join ', ')))) { return }
        return New-DistributionGroup -Name $Group -Type Security -Members $Mailbox -ErrorAction Stop
    }
    if ([string] $found[0].RecipientTypeDetails -ne 'MailUniversalSecurityGroup') {
        throw ('"{0}" is a {1}, not a mail-enabled security group. Name another one with -Group.' -f $Group, $found[0].RecipientTypeDetails)
    }
    $members = @(Get-DistributionGroupMember -Identity $Group -ResultSize Unlimited -ErrorAction Stop | ForEach-Object { [string] (Get-Property $_ 'PrimarySmtpAddress') })
    foreach ($address in $Mailbox) {
        if ($members -contains $address) { Write-Verbose ('{0} is in the group' -f $address) }
        elseif (Test-Approval ('group "{0}"' -f $Group) ('Add {0}' -f $address)) {
            [void] (Add-DistributionGroupMember -Identity $Group -Member $address -BypassSecurityGroupManagerCheck -ErrorAction Stop)
        }
    }
    $found[0]
}

# Set-Scope makes the management scope over the group.
function Set-Scope {
    param([string] $Scope, $GroupObject)
    $filter = $null
    if ($null -ne $GroupObject) { $filter = "MemberOfGroup -eq '{0}'" -f ([string] $GroupObject.DistinguishedName).Replace("'", "''") }
    $found = @(Get-ManagementScope -ErrorAction Stop | Where-Object { [string] $_.Name -eq $Scope })
    if ($found.Count -gt 0) {
        # Exchange writes the filter in its own way, so only the group is looked for.
        if ($null -ne $GroupObject -and ([string] $found[0].RecipientFilter).IndexOf([string] $GroupObject.DistinguishedName, [StringComparison]::OrdinalIgnoreCase) -lt 0) {
            throw ('The management scope "{0}" is about something else: {1}. Remove it (Remove-ManagementScope), or choose another -Name.' -f $Scope, $found[0].RecipientFilter)
        }
        Write-Verbose ('the management scope "{0}" is there' -f $Scope)
        return
    }
    if (-not (Test-Approval ('management scope "{0}"' -f $Scope) ('Create over the members of "{0}"' -f $Group))) { return }
    [void] (New-ManagementScope -Name $Scope -RecipientRestrictionFilter $filter -ErrorAction Stop)
}

# Set-RoleAssignment gives the app the role over the scope.
function Set-RoleAssignment {
    param([string] $Assignment, [string] $Scope, [string] $Enterprise)
    $found = @(Get-ManagementRoleAssignment -Role $role -ErrorAction Stop | Where-Object { [string] $_.Name -eq $Assignment })
    if ($found.Count -gt 0) {
        $other = [string] (Get-Property $found[0] 'CustomResourceScope')
        if ($other -and $other -ne $Scope) {
            throw ('The role assignment "{0}" has another scope: {1}. Remove it (Remove-ManagementRoleAssignment), or choose another -Name.' -f $Assignment, $other)
        }
        Write-Verbose ('the role assignment "{0}" is there' -f $Assignment)
        return
    }
    if (-not (Test-Approval ('role assignment "{0}"' -f $Assignment) ('Give the role "{0}" over the scope "{1}"' -f $role, $Scope))) { return }
    [void] (New-ManagementRoleAssignment -Name $Assignment -Role $role -App $Enterprise -CustomResourceScope $Scope -ErrorAction Stop)
}

# Show-Authorization prints whether each mailbox is in the scope. It looks past Exchange's caches, so it says yes
# long before a sign-in succeeds.
function Show-Authorization {
    param([string] $Enterprise)
    foreach ($address in $Mailbox) {
        try {
            $rows = @(Test-ServicePrincipalAuthorization -Identity $Enterprise -Resource $address -ErrorAction Stop | Where-Object { [string] $_.RoleName -eq $role })
            $in = @($rows | Where-Object { [string] $_.InScope -eq 'True' }).Count -gt 0
            if (-not $in) { Write-Warning ('{0} is not in the scope yet. Look again later: Test-ServicePrincipalAuthorization -Identity {1} -Resource {0}' -f $address, $Enterprise) }
        }
        catch { Write-Warning ('Test-ServicePrincipalAuthorization could not say whether {0} is in the scope: {1}' -f $address, $_.Exception.Message) }
    }
}

# Set-FullAccess gives the app Full Access on the mailboxes (classic model). Giving it twice does no harm.
function Set-FullAccess {
    param([string] $Enterprise)
    $names = @($Enterprise, $Name)
    foreach ($known in @(Get-ServicePrincipal -ErrorAction Stop | Where-Object { [string] (Get-Property $_ 'ObjectId') -eq $Enterprise })) {
        $names += @('Identity', 'Sid', 'Name' | ForEach-Object { [string] (Get-Property $known $_) } | Where-Object { $_ })
    }
    foreach ($address in $Mailbox) {
        $given = @(Get-MailboxPermission -Identity $address -ErrorAction Stop | Where-Object {
                $names -contains [string] $_.User -and @($_.AccessRights | ForEach-Object { [string] $_ }) -contains 'FullAccess' -and $_.Deny -ne $true
            })
        if ($given.Count -gt 0) { Write-Verbose ('the app has Full Access on {0}' -f $address) }
        elseif (Test-Approval $address 'Give the app Full Access') {
            [void] (Add-MailboxPermission -Identity $address -User $Enterprise -AccessRights FullAccess -ErrorAction Stop)
        }
    }
}

# Set-SendAs lets mailboxes send as other addresses. It is the mailbox that needs the right, not the app.
function Set-SendAs {
    foreach ($sender in @($SendAs.Keys)) {
        foreach ($address in @($SendAs[$sender])) {
            $given = @(Get-RecipientPermission -Identity $address -Trustee $sender -ErrorAction Stop | Where-Object {
                    @($_.AccessRights | ForEach-Object { [string] $_ }) -contains 'SendAs' -and [string] (Get-Property $_ 'AccessControlType') -ne 'Deny'
                })
            if ($given.Count -gt 0) { Write-Verbose ('{0} may send as {1}' -f $sender, $address) }
            elseif (Test-Approval $address ('Let {0} send as it' -f $sender)) {
                [void] (Add-RecipientPermission -Identity $address -Trustee $sender -AccessRights SendAs -Confirm:$false -ErrorAction Stop)
            }
        }
    }
}

# Set-SmtpAuth switches SMTP AUTH on, which OAuth needs too. The mailbox's own setting wins over the organisation's.
function Set-SmtpAuth {
    foreach ($address in $Mailbox) {
        $settings = Get-CASMailbox -Identity $address -ErrorAction Stop
        if ((Get-Property $settings 'SmtpClientAuthenticationDisabled') -eq $false) { Write-Verbose ('SMTP AUTH is on for {0}' -f $address) }
        elseif (Test-Approval $address 'Switch SMTP AUTH on') {
            [void] (Set-CASMailbox -Identity $address -SmtpClientAuthenticationDisabled $false -ErrorAction Stop)
        }
    }
}

# --- What to write into sendas.yaml ----------------------------------------------------------------

# Get-Tenant returns the tenant's id and cloud, from the session that there is.
function Get-Tenant {
    if ($doesEntra) {
        $context = Get-MgContext
        $clouds = @{ USGov = 'gcc-high'; USGovDoD = 'dod'; China = 'china' }
        $cloud = [string] $clouds[[string] (Get-Property $context 'Environment')]
        return @{ id = [string] $context.TenantId; cloud = $cloud }
    }
    $session = @(Get-ConnectionInformation -ErrorAction Stop | Where-Object { [string] $_.State -eq 'Connected' })[0]
    @{ id = [string] (Get-Property $session 'TenantID'); cloud = '' }
}

# Write-Quoted quotes a text for YAML.
function Write-Quoted {
    param([string] $Text)
    '"{0}"' -f $Text.Replace('\', '\\').Replace('"', '\"')
}

# Get-Configuration returns the lines for sendas.yaml.
function Get-Configuration {
    param([string] $AppId, [string] $Registration)
    $tenant = Get-Tenant
    $addresses = @($Mailbox) + @($SendAs.Values | ForEach-Object { $_ })
    $domains = @($addresses | ForEach-Object { $_.Split('@')[-1].ToLowerInvariant() } | Sort-Object -Unique)
    'tenant:'
    '  id: ' + $tenant.id
    if ($tenant.cloud) { '  cloud: ' + $tenant.cloud }
    if ($domains.Count -gt 0) { '  domains: [{0}]' -f ($domains -join ', ') }
    'credentials:'
    if ($Model -ne 'User') {
        '  {0}:' -f $CredentialName
        '    flow: client_credentials'
        '    client_id: ' + $AppId
        '    certificate_file: {0}.pem   # certificate and key, on the relay alone' -f $CredentialName
        if ($Registration) {
            '    renew: 30d   # the relay replaces the certificate by itself, so many days before its end'
            '    object_id: {0}   # of the app registration' -f $Registration
        }
    }
    else {
        foreach ($address in $Mailbox) { # one sign-in each
            '  {0}:' -f (Get-UserCredential $address)
            '    flow: device_code'
            '    client_id: ' + $AppId
            '    user: ' + (Write-Quoted $address)
        }
    }
    if ($Mailbox.Count -eq 0) { return }
    'mailboxes:'
    foreach ($address in $Mailbox) {
        $credential = $CredentialName
        if ($Model -eq 'User') { $credential = Get-UserCredential $address }
        '  - address: ' + (Write-Quoted $address)
        '    credential: ' + $credential
        if ($SendAs.ContainsKey($address)) {
            '    send_as: [{0}]' -f (@($SendAs[$address] | ForEach-Object { Write-Quoted $_ }) -join ', ')
        }
    }
}

# Get-UserCredential names the credential of one user: sendas takes letters, digits, dot, hyphen and underscore.
function Get-UserCredential {
    param([string] $Address)
    $text = $Address -replace '[^A-Za-z0-9._-]', '_'
    $text.Substring(0, [Math]::Min(64, $text.Length))
}

# --- The whole -------------------------------------------------------------------------------------

Assert-Parameter
$certificate = $null
if ($doesEntra -and $Model -ne 'User') { $certificate = Read-Certificate }
if ($doesEntra) { Assert-GraphSession }
if ($doesExchange) {
    Assert-ExchangeSession
    Assert-Mailbox
}

$appId = $ClientId
$enterprise = $ObjectId
$registration = ''
if ($doesEntra) {
    $app = Set-App
    $registration = [string] $app.id
    if ($Model -ne 'User') { Set-Certificate -App $app -Certificate $certificate }
    $enterpriseApp = Set-EnterpriseApp -App $app
    switch ($Model) {
        'Classic' { Set-Consent -App $app -EnterpriseApp $enterpriseApp }
        'Rbac' { Show-Consent -EnterpriseApp $enterpriseApp }
        'User' { Set-PublicClient -App $app }
    }
    $appId = [string] $app.appId
    $enterprise = [string] $enterpriseApp.id
    if (-not $enterprise) { $enterprise = $isNew }
}

if ($doesExchange) {
    if ($Model -ne 'User') { Set-ExchangePrincipal -AppId $appId -Enterprise $enterprise }
    if ($Model -eq 'Rbac') {
        # Names of role assignments have at most 64 characters.
        $scope = $Name.Substring(0, [Math]::Min(58, $Name.Length)) + ' scope'
        $assignment = $Name.Substring(0, [Math]::Min(59, $Name.Length)) + ' SMTP'
        Set-Scope -Scope $scope -GroupObject (Set-Group)
        Set-RoleAssignment -Assignment $assignment -Scope $scope -Enterprise $enterprise
        if (-not $WhatIfPreference) { Show-Authorization -Enterprise $enterprise }
    }
    if ($Model -eq 'Classic') { Set-FullAccess -Enterprise $enterprise }
    Set-SendAs
    Set-SmtpAuth
}

''
if ($appId) { 'application (client) id:                 {0}' -f $appId }
if ($Model -ne 'User') { 'object id of the enterprise application: {0}' -f $enterprise }
if ($Part -eq 'Entra') {
    ''
    'Now the Exchange administrator types, with the mailboxes of your organisation:'
    $ids = ' -ClientId {0} -ObjectId {1}' -f $appId, $enterprise
    if ($Model -eq 'User') { $ids = '' }
    '  .\Set-SendasApp.ps1 -Model {0} -Part Exchange{1} -Mailbox erp@contoso.com' -f $Model, $ids
}
if ($appId) {
    ''
    'For /etc/sendas/sendas.yaml:'
    ''
    Get-Configuration -AppId $appId -Registration $registration
    ''
}
'Exchange Online takes up to two hours to act on this. Then, on the relay: sendas check, and sendas doctor.'
